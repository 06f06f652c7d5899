"""The contracts hold for the fakes, and notice when something breaks them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from sgl_core.testing import BackendContract, ByteCodec, CodecContract, FakeBackend


class TestFakeBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[FakeBackend]:
        with FakeBackend() as fake:
            yield fake

    @pytest.fixture
    def closable_backend(self) -> Iterator[FakeBackend]:
        gate = threading.Event()
        yield FakeBackend(lambda ids, params: str(gate.wait(60)))
        gate.set()


class TestByteCodec(CodecContract):
    @pytest.fixture
    def codec(self) -> ByteCodec:
        return ByteCodec()


class TestCodecWithoutTemplate(CodecContract):
    has_template = False

    @pytest.fixture
    def codec(self) -> ByteCodec:
        return ByteCodec()


def test_the_codec_contract_notices_text_that_becomes_a_control_token() -> None:
    class Careless(ByteCodec):
        def encode(self, text: str) -> tuple[int, ...]:
            return self.encode_trusted(text) if "<|" in text else super().encode(text)

    with pytest.raises(AssertionError):
        CodecContract().test_a_spelled_control_token_stays_text_unless_trusted(Careless())


def test_the_codec_contract_notices_a_lossy_decode() -> None:
    class Lossy(ByteCodec):
        def decode(self, ids: Sequence[int]) -> str:
            return super().decode(ids).strip()

    with pytest.raises(AssertionError):
        CodecContract().test_encode_and_decode_are_inverse(Lossy())


def test_the_backend_contract_notices_a_backend_that_takes_an_empty_prompt() -> None:
    class Lenient(FakeBackend):
        def _check(self, ids: Sequence[int], max_new_tokens: int | None) -> None:
            pass

    with Lenient() as backend, pytest.raises(AssertionError):
        BackendContract().test_an_empty_prompt_is_refused_at_submit(backend)

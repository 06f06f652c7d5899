"""The contracts hold for the fakes, and notice when something breaks them."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from sgl_core.backend import Capabilities
from sgl_core.errors import NotYetAvailableError
from sgl_core.testing import BackendContract, ByteCodec, CodecContract, FakeBackend
from sgl_core.types import GenRequest, GenResult


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


def test_the_backend_contract_notices_healed_text_in_the_output() -> None:
    class Doubling(FakeBackend):
        def _result(self, request: GenRequest, *args) -> GenResult:
            result = super()._result(request, *args)
            return replace(result, text=request.heal + result.text)

    with Doubling() as backend, pytest.raises(AssertionError):
        BackendContract().test_text_to_be_healed_is_spelled_before_the_output_and_is_no_part_of_it(backend)


def test_the_backend_contract_notices_log_probabilities_of_other_tokens() -> None:
    class Shifted(FakeBackend):
        def _result(self, *args) -> GenResult:
            result = super()._result(*args)
            return replace(result, logprobs=result.logprobs and result.logprobs[1:])

    with Shifted() as backend, pytest.raises(AssertionError):
        BackendContract().test_log_probabilities_are_reported_for_each_token_with_the_likeliest_others(backend)


def test_the_backend_contract_skips_what_a_backend_does_not_do() -> None:
    class Lesser(FakeBackend):
        capabilities = Capabilities()

        def submit(self, request: GenRequest):
            if request.params.n != 1:
                raise NotYetAvailableError("one at a time")
            return super().submit(request)

    contract = BackendContract()
    with Lesser() as backend:
        for test in (
            contract.test_text_to_be_healed_is_spelled_before_the_output_and_is_no_part_of_it,
            contract.test_several_completions_have_seeds_of_their_own_and_can_be_repeated,
        ):
            with pytest.raises(unittest.SkipTest):
                test(backend)

"""Fixtures of this room: backends, and a codec in which neighbours merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from sgl_core.language import defaults, set_default_backend
from sgl_core.testing import ByteCodec, FakeBackend


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend() as fake:
        yield fake


class MergingCodec(ByteCodec):
    """Bytes, and one id for some pairs of neighbouring letters, so that encoding in pieces gives other ids."""

    fingerprint = "merging"
    vocab_size = 1000 + 26 * 26

    def encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for byte in super().encode(text):
            if ids and 97 <= byte < 123 and 97 <= ids[-1] < 123 and (ids[-1] + byte) % 3:
                ids[-1] = 1000 + (ids[-1] - 97) * 26 + byte - 97
            else:
                ids.append(byte)
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[int] = []
        for token in ids:
            parts += divmod(token - 1000, 26) if token >= 1000 else (token,)
            if token >= 1000:
                parts[-2:] = [parts[-2] + 97, parts[-1] + 97]
        return super().decode(parts)

    def stable_len(self, text: str) -> int:
        return max(0, len(self.encode(text)) - 1)


@pytest.fixture(scope="session")
def merging_codec() -> ByteCodec:
    return MergingCodec()


@pytest.fixture
def no_default_backend() -> Iterator[None]:
    """The process has no default backend during the test, and the one that it had again after it."""
    before = dict(vars(defaults._default))
    set_default_backend(None)
    yield
    vars(defaults._default).update(before)

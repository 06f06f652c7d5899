"""flush_cache and get_server_info."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sgl_core.errors import InvalidArgumentError, NotYetAvailableError
from sgl_core.language import set_default_backend
from sgl_core.language.services import flush_cache, get_server_info, server_info
from sgl_core.testing import FakeBackend


class Cached(FakeBackend):
    """Has what engines have."""

    def __init__(self) -> None:
        super().__init__()
        self.flushes = 0
        self.facts = {"model": "tiny", "pool": {"tokens": 7}}

    def flush_cache(self) -> None:
        self.flushes += 1

    def info(self) -> dict[str, object]:
        return self.facts


pytestmark = pytest.mark.usefixtures("no_default_backend")


@pytest.fixture
def default(no_default_backend: None) -> Iterator[Cached]:
    with Cached() as backend:
        set_default_backend(backend)
        yield backend


def test_the_backend_that_is_named_forgets(default: Cached) -> None:
    with Cached() as other:
        flush_cache(other)
    assert (other.flushes, default.flushes) == (1, 0)


def test_without_one_the_default_backend_forgets_and_is_asked(default: Cached) -> None:
    flush_cache()
    assert default.flushes == 1
    assert get_server_info() == default.facts


def test_what_a_backend_says_is_the_callers_to_change(default: Cached) -> None:
    get_server_info()["model"] = "another"
    assert server_info(default)["model"] == "tiny"


def test_a_backend_without_a_cache_or_facts_says_so(backend: FakeBackend) -> None:
    with pytest.raises(NotYetAvailableError, match=r"FakeBackend has no cache to flush; pass backend="):
        flush_cache(backend)
    with pytest.raises(NotYetAvailableError, match=r"FakeBackend says nothing about itself; pass backend="):
        get_server_info(backend)


def test_what_is_no_backend_is_refused() -> None:
    for asked in (flush_cache, get_server_info):
        with pytest.raises(InvalidArgumentError, match="backend"):
            asked("engine")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="set_default_backend"):
            asked()

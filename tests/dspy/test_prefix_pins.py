"""Kept prefixes: named by what they are, bounded, given back."""

import pytest

from sgl_core.errors import EngineShutdown, InvalidArgumentError, PoolExhaustedError
from sgl_core.testing import FakeBackend
from sgl_dspy.running.prefix_pins import PrefixPins


class Pin:
    def __init__(self, backend, ids):
        self.cached_tokens = 1
        self._backend, self._ids = backend, ids

    def unpin(self):
        if self._backend.is_gone:
            raise EngineShutdown("closed")
        self._backend.pinned.remove(self._ids)
        return True


class Pinning(FakeBackend):
    """Has room for some tokens."""

    def __init__(self, room=100):
        super().__init__()
        self.pinned = []
        self.is_gone = False
        self._room = room

    def pin(self, prompt, *, namespace=None):
        if sum(map(len, self.pinned)) + len(prompt) > self._room:
            raise PoolExhaustedError("no room")
        self.pinned.append(prompt)
        return Pin(self, prompt)


@pytest.fixture
def pinning():
    with Pinning() as fake:
        yield fake


def test_a_prefix_is_kept_once_and_found_by_its_name(pinning):
    pins = PrefixPins()
    one, is_new = pins.keep(pinning, (1, 2), None)
    again, is_new_again = pins.keep(pinning, (1, 2), None)
    assert (is_new, is_new_again, again) == (True, False, one)
    assert pinning.pinned == [(1, 2)]
    assert pins.find(one.resource) is one
    assert one.found.cached_tokens == 1


def test_a_namespace_has_prefixes_of_its_own(pinning):
    pins = PrefixPins()
    assert pins.keep(pinning, (1,), None)[0].resource != pins.keep(pinning, (1,), "mine")[0].resource


def test_the_least_recently_used_gives_way(pinning):
    pins = PrefixPins(most=2)
    first, second = (pins.keep(pinning, (i,), None)[0] for i in range(2))
    pins.find(first.resource)
    pins.keep(pinning, (2,), None)
    assert pinning.pinned == [(0,), (2,)]
    assert len(pins) == 2
    with pytest.raises(InvalidArgumentError, match="resource"):
        pins.find(second.resource)


def test_older_prefixes_give_way_where_the_pool_is_small():
    fake = Pinning(room=5)
    pins = PrefixPins()
    for ids in ((1, 1), (2, 2), (3, 3, 3)):
        pins.keep(fake, ids, None)
    assert fake.pinned == [(2, 2), (3, 3, 3)]


def test_a_prefix_that_never_fits_is_an_error():
    pins = PrefixPins()
    with pytest.raises(PoolExhaustedError):
        pins.keep(Pinning(room=1), (1, 2), None)


def test_closing_gives_everything_back(pinning):
    pins = PrefixPins()
    pins.keep(pinning, (1,), None)
    pins.close()
    assert (pinning.pinned, len(pins)) == ([], 0)
    pins.keep(pinning, (1,), None)
    pinning.is_gone = True
    pins.close()
    assert len(pins) == 0


def test_a_backend_that_cannot_pin_computes_the_prefix(backend):
    PrefixPins().keep(backend, (1, 2), "mine")
    assert [(one.input_ids, one.namespace) for one in backend.prefetches] == [((1, 2), "mine")]

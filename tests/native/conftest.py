"""A backend that keeps a real prefix tree of the prompts that it was given, for commands that draw it."""

from __future__ import annotations

import itertools
import re

import pytest

from sgl_core.runtime.metrics import EngineStats
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.snapshot import TreeSnapshot, take_snapshot
from sgl_core.testing import FakeBackend
from sgl_native import engines

SHEET = '{\n  "name": "Ada",\n  "role": "healer",\n  "strength": 7,\n  "carries": ["a drum", "a map"]\n}'


def fitting_reply(ids, params):
    """Hello, or what the request's pattern allows."""
    return next(text for text in ("Hello", "7", SHEET) if re.fullmatch(params.regex or "Hello", text))


class TreeBackend(FakeBackend):
    """Like an engine, it has ``tree`` and ``stats`` and takes an engine's options."""

    def __init__(self, reply=None, **options):
        super().__init__(reply)
        self.options = options
        self.is_closed = False

    def tree(self) -> TreeSnapshot:
        tree, slots = RadixCache(), itertools.count()
        prompts = [request.input_ids for request in self.requests]
        scored = [(*request.input_ids, *choice) for request in self.scores for choice in request.continuations]
        for ids in (*prompts, *scored):
            tree.insert(ids, list(itertools.islice(slots, len(ids))))
        return take_snapshot(tree)

    def stats(self) -> EngineStats:
        """Nothing is cached, so every prompt token counts as computed."""
        prompt_tokens = sum(len(request.input_ids) for request in (*self.requests, *self.scores))
        counts = {**dict.fromkeys(EngineStats.__dataclass_fields__, 0), "prompt_tokens": prompt_tokens}
        return EngineStats(**{**counts, "prefilled_tokens": prompt_tokens})

    def close(self) -> None:
        self.is_closed = True
        super().close()


@pytest.fixture
def tree_backend():
    """The class."""
    return TreeBackend


@pytest.fixture
def fitting():
    """A reply that suits every example."""
    return fitting_reply


@pytest.fixture
def opened_trees(monkeypatch):
    """Backends that the command opened, by configuration in order; each answers "Hello" where a pattern allows it."""
    opened = []

    def open_fake(config):
        backend = TreeBackend(fitting_reply)
        opened.append((config, backend))
        return backend

    monkeypatch.setattr(engines, "open_engine", open_fake)
    return opened

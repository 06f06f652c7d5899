"""A program's own history on the embedded model: id for id the same from call to call, and found in the cache."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import sgl_native as sgl
from sgl_core.backend import Handle
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.types import GenRequest, GenResult

NUM_PROGRAMS = 20
TEXTS = ("Name a colour.", "Say more", " and then ", "\n\nIn short:", " 1", "'s", "!\n", "Why? ", "é\u00a0", "Q: Who?\nA:")
STOPS = (None, "\n", ".", "e", "an")


@dataclass(frozen=True)
class Call:
    """A request of one program and what it gave."""

    request: GenRequest
    result: GenResult


class Recording:
    """An engine that remembers which requests each program made, in order."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.handles: list[tuple[GenRequest, Handle[GenResult]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        handle: Handle[GenResult] = self.engine.submit(request)
        self.handles.append((request, handle))
        return handle

    def calls(self, program_id: str) -> list[Call]:
        return [Call(request, handle.result(0)) for request, handle in self.handles if request.hints.program_id == program_id]

    # What ``isinstance(..., Backend)`` looks for.
    codec = property(lambda self: self.engine.codec)
    capabilities = property(lambda self: self.engine.capabilities)

    def score(self, request: Any) -> Any:
        return self.engine.score(request)

    def prefetch(self, request: Any) -> Any:
        return self.engine.prefetch(request)

    def fewest_tokens(self, params: Any) -> int:
        return int(self.engine.fewest_tokens(params))

    def new_seed(self) -> int:
        return int(self.engine.new_seed())

    def close(self) -> None:
        """The engine stays its owner's."""


@pytest.fixture(scope="module")
def recording(embedded_model: LoadedModel) -> Iterator[Recording]:
    with sgl.Engine(loaded=embedded_model, cache_tokens=8_192) as engine:
        yield Recording(engine)


def program(number: int) -> sgl.SglFunction:
    """A program of several generations: plain or in turns, with stops that cut tokens, hot or greedy."""
    rng = random.Random(number)
    num_calls = rng.randint(3, 5)
    is_chat = number % 2 == 0

    @sgl.function
    def body(s: Any) -> None:
        s += sgl.system("Be brief.") if is_chat else f"Program {number}. "
        for index in range(num_calls):
            text = rng.choice(TEXTS)
            answer = sgl.gen(f"a{index}", max_tokens=rng.randint(1, 7), temperature=rng.choice((0, 1)), stop=rng.choice(STOPS))
            s += sgl.user(text) + sgl.assistant(answer) if is_chat else text + answer
            if index == 1:
                s += rng.choice(TEXTS)  # two constants between two generations are one

    return body


def test_the_ids_of_a_programs_history_stay_and_only_what_is_new_is_computed(recording: Recording) -> None:
    states = []
    for number in range(NUM_PROGRAMS):
        one: Any = program(number)
        runner = one if number % 3 else one.compile()
        states.append(runner.run(backend=recording, seed=number, stream=True))
    num_calls = num_cut = 0
    for state in states:
        assert state.error() is None
        calls = recording.calls(state.run.program_id)
        for before, after in itertools.pairwise(calls):
            history = before.request.input_ids + before.result.healed_ids + before.result.token_ids
            assert after.request.input_ids[: len(history)] == history
            usage = after.result.usage
            new_tokens = usage.prompt_tokens - len(history)  # with those that are healed
            assert usage.prompt_tokens - usage.cached_tokens <= max(1, new_tokens + 1)
            num_calls += 1
            num_cut += bool(before.result.text_behind_ids)
    assert num_calls >= 2 * NUM_PROGRAMS
    assert num_cut >= 1, "no stop string ended inside a token"

"""The systems that run the DSPy programs on our engine, and what is noted of a round, ours or a server's.

Every system runs the same weights and has the same number of threads. No token ends a reply early: the end of a text is forbidden
with ``logit_bias``, an option that every one of them takes, so that a reply has exactly its ``max_tokens`` and all systems
generate the same number. Our own adapter alone writes less, as that is what it is for. DSPy's answer cache is off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import dspy
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy_workloads import DspyWorkload, ForgivingAdapter
from execution import Answered
from harness import Advance, Outcome, Session, System
from recording import RecordingEngine, counts

from sgl_core.backend import Backend
from sgl_core.testing.optimum import LoggedRequest
from sgl_dspy import ChatAdapter, SglLM, compile_module

__all__ = [
    "CACHE_OFF",
    "COMPILED",
    "FIELDS",
    "FORBIDDEN",
    "OURS",
    "DspyOutcome",
    "Reply",
    "engine_system",
    "forbidden_ends",
    "reported",
    "run_program",
]

OURS, CACHE_OFF = "sgl-core", "sgl-core, cache off"
FIELDS, COMPILED = "sgl-core, ChatAdapter", "sgl-core, compiled"
"""The systems. The first two have an adapter that renders and asks as DSPy's own does; the others have ours, with a program for
each reply, and the last one is what ``compile_module`` makes, for users who configured DSPy's."""
FORBIDDEN = -100.0
"""The least bias that OpenAI's interface has, and enough."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A call of the LM: the conversation as text, the candidates that came out, and the tokens as DSPy was told them."""

    messages: str
    texts: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class DspyOutcome(Outcome):
    """What one round gave, with what the program itself put out.

    Args:
        outputs: of the program.
        replies: of the LM, in the order in which the calls ended.
        prompts: ids of what the engine was asked; empty for a server, which is asked for them elsewhere.
    """

    outputs: tuple[str, ...] = ()
    replies: tuple[Reply, ...] = ()
    prompts: frozenset[tuple[int, ...]] = frozenset()


def forbidden_ends(engine: RecordingEngine) -> dict[str, float]:
    """``logit_bias`` of every request: no control token is chosen, so none ends a reply, whatever a system takes for an end."""
    return {str(token): FORBIDDEN for token in sorted(engine.facts.eos_ids | engine.codec.control_ids)}


class _Progress(dspy.utils.callback.BaseCallback):
    """Moves the progress bar by the candidates of each call."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """DSPy's hook."""
        del call_id, exception
        self._advance(len(outputs or ()))


def run_program(
    workload: DspyWorkload, program: dspy.Module, lm: dspy.LM, adapter: dspy.Adapter, advance: Advance
) -> tuple[tuple[str, ...], tuple[Reply, ...]]:
    """Drive a program with this LM; what it put out, and every call of the LM, those of copies included."""
    GLOBAL_HISTORY.clear()
    with dspy.context(lm=lm, adapter=adapter, callbacks=[_Progress(advance)]):
        outputs = tuple(workload.drive(program))
    return outputs, tuple(_reply(entry) for entry in GLOBAL_HISTORY)


def _reply(entry: dict[str, Any]) -> Reply:
    usage = entry["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    texts = tuple(output if isinstance(output, str) else str(output["text"]) for output in entry["outputs"])
    messages = json.dumps(entry["messages"], ensure_ascii=False)
    return Reply(messages, texts, usage["prompt_tokens"], cached, usage["completion_tokens"])


def reported(replies: Sequence[Reply]) -> dict[str, int]:
    """Tokens as DSPy was told them."""
    return {
        "lm_calls": len(replies),
        "replies": sum(len(reply.texts) for reply in replies),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "cached_tokens": sum(reply.cached_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }


def engine_system(
    name: str, workload: DspyWorkload, engine: RecordingEngine, rounds: int, *, patience_s: float = math.inf
) -> System:
    """The program on this engine, whose cache every round finds empty.

    Args:
        name: one of ``OURS``, ``CACHE_OFF`` (then of an engine without a cache), ``FIELDS`` and ``COMPILED``.
        rounds, patience_s: see ``System``.
    """
    make_adapter: dict[str, Callable[[], dspy.Adapter]] = {
        OURS: ForgivingAdapter,
        CACHE_OFF: ForgivingAdapter,
        FIELDS: ChatAdapter,
        COMPILED: dspy.ChatAdapter,  # compile_module puts ours in its place
    }
    adapter = make_adapter[name]()

    @contextmanager
    def session() -> Iterator[Session]:
        program = workload.build()
        if name == COMPILED:
            program = compile_module(program, **workload.compiling)
        backend = cast("Backend", engine)  # which calls the first parameter of submit by another name
        lm = SglLM(backend=backend, max_tokens=workload.max_tokens, logit_bias=forbidden_ends(engine), cache=False)
        engine.flush_cache()
        engine.reset_stats()
        engine.forget()

        def run(advance: Advance) -> Outcome:
            return _outcome(engine, *run_program(workload, program, lm, adapter, advance))

        yield run

    return System(name, session, rounds, patience_s)


def _outcome(engine: RecordingEngine, outputs: tuple[str, ...], replies: tuple[Reply, ...]) -> DspyOutcome:
    engine.check_invariants()  # between two steps, so behind the notes on the last answers
    requests: list[LoggedRequest] = [request for request, _ in engine.answered]
    usages = [result.usage for _, result in engine.answered]
    record = tuple(Answered((number,), "", request) for number, request in enumerate(requests))
    details = {**reported(replies), "engine": counts(engine, requests, usages)}
    return DspyOutcome(record, details, outputs, replies, frozenset(request.prompt for request in requests))

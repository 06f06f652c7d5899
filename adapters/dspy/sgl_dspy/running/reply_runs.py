"""Runs reply programs: a ``ReplyProgram`` behind a prompt becomes one stream of the language, its result one ``GenResult``.

Called by the engine for each candidate. All nodes are submitted at once; the process's dispatcher goes from field to field, so a
reply under way takes no thread. The budget covers the whole reply: what later fields need is kept back from earlier ones, so the
reply always comes to its end, and says LENGTH if it had to be cut short for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from sgl_core.backend import Backend, Handle, TextCodec
from sgl_core.errors import ContextLengthError, InvalidArgumentError, RequestAborted
from sgl_core.handle import RequestHandle
from sgl_core.language.ir import AdaptiveGen, ConstantText, Expr, Gen
from sgl_core.language.position import Position, TokenRope, pieces_since, text_of
from sgl_core.language.run import ProgramRun
from sgl_core.language.variables import VariableFuture
from sgl_core.types import FinishReason, GenDelta, GenResult, SamplingParams, Usage
from sgl_dspy.formats.reply_program import Choice, Forced, FreeText, JsonBy, JsonValue, Pattern, ReplyProgram, Step

__all__ = ["submit_reply"]

_NOT_EMPTY: Final = r"([^\s\[]|\[([^\w\s\[#*`]|[0-9]))(?s:.*)"
"""Begins with something to see, and not with a header. A bracket in front of a word or a backtick is what a model writes that may not
write the header that it looks for, and it seldom finds an end from there; one in front of a digit, a quote or a bracket that closes
is text."""
_CONSTRAINTS: Final = {"regex": None, "json_schema": None, "grammar": None, "choices": None}
_LEAST_TEXT: Final = 4
_COMFORTABLE_TEXT: Final = 32
_COMFORTABLE_JSON: Final = 48
_MORE_DIGITS: Final = 6
_JOINT: Final = 2
"""Tokens by which forced text may take more behind a generation than alone: a stop may have cut one in two."""
_CUT: Final = (FinishReason.LENGTH, FinishReason.GRAMMAR)


def submit_reply(
    program: ReplyProgram,
    prompt_ids: tuple[int, ...],
    params: SamplingParams,
    backend: Backend,
    *,
    namespace: str | None = None,
    timeout_s: float | None = None,
) -> Handle[GenResult]:
    """Start a reply; returns at once.

    Args:
        program: what to write.
        prompt_ids: the prompt up to where the reply begins.
        params: of every generation in it; ``max_new_tokens`` is for the whole reply, forced text included, and must be given.
            Its stops end free text. A constraint of its own does not go with a program.
        backend: takes token ids.
        namespace, timeout_s: as in ``GenRequest``.

    Returns:
        A handle. Forced text arrives in deltas of its own and counts as completion tokens; ``finish_reason`` is LENGTH if the
        budget cut a field, else STOP.

    Raises:
        InvalidArgumentError: the budget is less than the shortest reply, or a field's constraint cannot be used.
        ContextLengthError: the shortest reply does not fit behind the prompt.
    """
    codec = backend.codec
    if codec is None or params.max_new_tokens is None:
        raise InvalidArgumentError("params", "no budget, or a backend without token ids", "both")
    nodes = _nodes(program, len(prompt_ids), params, backend, codec)
    options = {f.name: getattr(params, f.name) for f in fields(params) if f.name not in ("seed", "n", *_CONSTRAINTS)}
    run = ProgramRun(
        backend,
        seed=params.seed,
        namespace=namespace,
        defaults=options,
        start=Position(TokenRope(prompt_ids)),
        timeout_s=timeout_s,
    )
    handle = _ReplyHandle(lambda _: run.cancel())
    run.root.listen(handle.put, is_live=True)  # it may be there before the first step is
    run.root.submit(nodes)
    generations = [future for node in nodes if isinstance(node, Gen) and (future := run.root.find(node.name or "")) is not None]
    run.end_body()
    run.when_streams_end(lambda: handle.end(run, len(prompt_ids), generations, codec))
    return handle


class _ReplyHandle(RequestHandle[GenResult]):
    """Text of a stream as deltas, and its end as a result."""

    __slots__ = ()

    def put(self, piece: str | None) -> None:
        """The next piece of text; None is the end, which ``end`` tells of."""
        if piece:
            self.push(GenDelta(piece, ()))

    def end(self, run: ProgramRun, prompt_len: int, generations: Sequence[VariableFuture], codec: TextCodec) -> None:
        """Finish, or fail as the stream did."""
        error = run.root.error
        if error is not None and not isinstance(error, RequestAborted):
            self.fail(error)
            return
        results = [future.generation for future in generations if future.generation is not None]
        try:
            joined = _joined(run, prompt_len, results, codec, is_aborted=error is not None)
        except BaseException as raised:  # the codec's: somebody waits for an end, whatever it is
            self.fail(raised)
            return
        self.finish(joined)


def _joined(run: ProgramRun, prompt_len: int, results: Sequence[GenResult], codec: TextCodec, *, is_aborted: bool) -> GenResult:
    """All generations of a reply, and the text between them, as one."""
    position = run.root.position.settled(codec)
    ids = position.ids.flat()[prompt_len:]
    cached = min(results[0].usage.cached_tokens, prompt_len) if results else 0
    finish = FinishReason.LENGTH if any(result.finish_reason in _CUT for result in results) else FinishReason.STOP
    return GenResult(
        text=text_of(pieces_since(position.trail)),
        token_ids=ids,
        finish_reason=FinishReason.ABORT if is_aborted else finish,
        usage=Usage(prompt_len, cached, len(ids)),
        seed=run.seed,
    )


# ---- from steps to nodes ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Cost:
    """Tokens of a step.

    Args:
        least: without them there is no legal value. ``comfortable``: what an ordinary value takes.
    """

    least: int
    comfortable: int


def _nodes(
    program: ReplyProgram, prompt_len: int, params: SamplingParams, backend: Backend, codec: TextCodec
) -> tuple[Expr, ...]:
    steps = [(step, _options(step, params)) for step in program.steps]
    costs = [_cost(step, options, backend, codec) for step, options in steps]
    assert params.max_new_tokens is not None, "checked by the caller"
    kept = _kept_back(costs, params.max_new_tokens, prompt_len, backend.capabilities.context_tokens)
    return tuple(
        _node(step, options, max_len=prompt_len + params.max_new_tokens - behind)
        for (step, options), behind in zip(steps, kept, strict=True)
    )


def _node(step: Step, options: dict[str, Any], *, max_len: int) -> Expr:
    match step:
        case Forced(text):
            return ConstantText(text)
        case JsonBy(name, by, schemas):
            cases = {value: {"json_schema": schema} for value, schema in schemas.items()}
            return AdaptiveGen(name, options, heal=False, max_len=max_len, by=by, cases=cases)
        case _:
            return AdaptiveGen(step.name, options, heal=False, max_len=max_len)


def _options(step: Step, params: SamplingParams) -> dict[str, Any]:
    """What a field asks for besides the parameters of the whole reply; stops are for free text alone."""
    alone: dict[str, Any] = {"stop": (), "stop_regex": None, "stop_token_ids": (), "min_new_tokens": 0}
    match step:
        case FreeText(stop=stop):
            patterns = [rf"\s*({'|'.join(re.escape(text) for text in stop)})"] if stop else []
            patterns += [] if params.stop_regex is None else [f"({params.stop_regex})"]
            return {"regex": _NOT_EMPTY, "stop_regex": "|".join(patterns) or None}
        case Choice(choices=choices):
            return {**alone, "choices": choices}
        case Pattern(regex=regex):
            return {**alone, "regex": regex}
        case JsonValue(schema=schema):
            return {**alone, "json_schema": schema}
        case _:
            return alone


def _cost(step: Step, options: dict[str, Any], backend: Backend, codec: TextCodec) -> _Cost:
    match step:
        case Forced(text):
            size = len(codec.encode(text)) + _JOINT
            return _Cost(size, size)
        case FreeText():
            return _Cost(_LEAST_TEXT, _COMFORTABLE_TEXT)
        case JsonBy(schemas=schemas):
            least = max(backend.fewest_tokens(SamplingParams(json_schema=schema)) for schema in schemas.values())
            return _Cost(least, max(least, _COMFORTABLE_JSON))
    least = backend.fewest_tokens(SamplingParams(**{name: options[name] for name in _CONSTRAINTS if name in options}))
    match step:
        case Choice(choices=choices):
            return _Cost(least, max(least, *(len(codec.encode(choice)) for choice in choices)))
        case Pattern():
            return _Cost(least, least + _MORE_DIGITS)
    return _Cost(least, max(least, _COMFORTABLE_JSON))


def _kept_back(costs: Sequence[_Cost], budget: int, prompt_len: int, context_tokens: int) -> Iterator[int]:
    """For each step, the tokens that those behind it may count on.

    Their least is always theirs. Of what is left over, at most half is kept for them to be comfortable; the field that is being
    written may take the rest.
    """
    least = sum(cost.least for cost in costs)
    if budget < least:
        if prompt_len + least > context_tokens:
            raise ContextLengthError(prompt_len, least, context_tokens, "the context")
        raise InvalidArgumentError(
            "max_tokens", budget, f"at least {least}, the shortest reply with all its fields", "Raise max_tokens."
        )
    wanted = sum(cost.comfortable - cost.least for cost in costs)
    share = min(1.0, (budget - least) / (2 * wanted)) if wanted else 0.0
    behind = [0]
    for cost in reversed(costs):
        behind.append(behind[-1] + cost.least + int((cost.comfortable - cost.least) * share))
    return iter(behind[-2::-1])

"""``explain``: what a chain's prompts share with each other, what keeps them from it, and whether the chain runs as a program.

For people. It loads no engine: tokens are counted where the model's engine is there already, and estimated from characters,
with the word "about", where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sgl_core.backend import TextCodec
from sgl_langchain.translate import nodes
from sgl_langchain.translate.engines import engine_key, held_engine
from sgl_langchain.translate.lower import name_of
from sgl_langchain.translate.plan import Plan
from sgl_langchain.translate.prefixes import constant_prefix
from sgl_langchain.translate.program_text import tool_name
from sgl_langchain.translate.steps import (
    CallStep,
    Close,
    EachStep,
    ForkStep,
    GenStep,
    Open,
    Piece,
    Step,
    Text,
    Value,
    common_pieces,
    gens_of,
    walk,
)

__all__ = ["explain"]

_CHARS_PER_TOKEN: Final = 4
_WORTH_SAYING: Final = 16  # constant tokens behind a hole


def explain(plan: Plan) -> str:
    """What a plan knows, in words.

    Raises:
        InvalidArgumentError: an option that is bound to a model cannot be used.
    """
    gens = plan.trace.gens()
    lines = [f"{_count(len(gens), 'model call')}, {_count(len(plan.fork_sites), 'fork')}"]
    keys = {gen: engine_key(gen.model) for gen in gens}
    for index, gen in enumerate(gens):
        lines += ["", *_Call(gen, _counter(gen), keys).lines(plan, gens[:index])]
    opaque = list(_opaque_lines(plan))
    if opaque:
        lines += ["", "steps that run as they are", *opaque]
    return "\n".join([*lines, "", *_verdict(plan)]) + "\n"


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts tokens of text, in a vocabulary if there is one."""

    codec: TextCodec | None

    def tokens(self, text: str) -> int:
        return len(self.codec.encode(text)) if self.codec is not None else -(-len(text) // _CHARS_PER_TOKEN)

    def say(self, text: str) -> str:
        number = _count(self.tokens(text), "token")
        return number if self.codec is not None else f"about {number} ({_count(len(text), 'character')})"


def _counter(gen: GenStep) -> _Counter:
    engine = held_engine(gen.model)
    return _Counter(None if engine is None else engine.codec)


@dataclass(frozen=True, slots=True)
class _Call:
    """What there is to say of one call of a model. ``keys``: engine and namespace of every call."""

    gen: GenStep
    counter: _Counter
    keys: Mapping[GenStep, object]

    def lines(self, plan: Plan, earlier: Sequence[GenStep]) -> Iterator[str]:
        place = f" ({self.gen.place})" if self.gen.place else ""
        yield f"{self.gen.name}: {name_of(self.gen.model.runnable)}{place}"
        yield f"  constant prefix: {self._prefix()}"
        yield from self._sharing(plan, earlier)
        yield from (f"  lint: {lint}" for lint in self._lints(plan.trace.gens()))
        tools = self.gen.model.options.get("tools")
        if tools:
            names = ", ".join(map(tool_name, tools))
            yield f"  tools: {names}; they stand in the system turn, so keep their order from call to call"

    def _prefix(self) -> str:
        if self.counter.codec is not None:
            return _count(len(constant_prefix(self.gen.model, self.gen.template)), "token")
        return self.counter.say(_text(_constant_beginning(self.gen.prompt)))

    # ---- sharing -----------------------------------------------------------------------------------------------------
    def _sharing(self, plan: Plan, earlier: Sequence[GenStep]) -> Iterator[str]:
        best = max(earlier, key=lambda other: self._size(self._common(other)), default=None)
        if best is not None and self._common(best):
            common = self._common(best)
            extends = common == best.prompt[: len(common)] and len(best.prompt) - len(common) <= 1
            how = "extends the prompt of" if extends and len(self.gen.prompt) > len(best.prompt) else "shares with"
            side_by_side = " (side by side: computed once, then forked)" if _are_arms(plan.trace.steps, best, self.gen) else ""
            yield f"  {how} {best.name}: {self._described(common)}{side_by_side}"
        if any(gen is self.gen for step in _eaches(plan.trace.steps) for gen in gens_of(step.body)):
            yield "  runs once for each element of a list: the elements share the constant prefix"
        if not _constant_beginning(self.gen.prompt):
            yield "  in a batch: nothing is shared unless inputs are equal"

    def _common(self, other: GenStep) -> tuple[Piece, ...]:
        if self.keys[other] != self.keys[self.gen]:
            return ()
        common = common_pieces(self.gen.prompt, other.prompt)
        return common if any(isinstance(piece, Text | Value) for piece in common) else ()

    def _size(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        return sum(isinstance(piece, Value) for piece in pieces), len(_text(pieces))

    def _described(self, pieces: Sequence[Piece]) -> str:
        values = [f"{{{piece.name or 'input'}}}" for piece in pieces if isinstance(piece, Value)]
        constant = f"{self.counter.say(_text(pieces))} of constant text"
        return f"{constant} and {', '.join(values)}" if values else constant

    # ---- lints -------------------------------------------------------------------------------------------------------
    def _lints(self, gens: Sequence[GenStep]) -> Iterator[str]:
        """Constant text behind a hole is computed again for every value of it, unless other prompts begin with that value."""
        holes = [index for index, piece in enumerate(self.gen.prompt) if isinstance(piece, Value)]
        if not holes:
            return
        if any(holes[0] < len(self._common(other)) for other in gens if other is not self.gen):
            return
        hole = self.gen.prompt[holes[0]]
        behind = _text(self.gen.prompt[holes[0] :])
        if self.counter.tokens(behind) >= _WORTH_SAYING and isinstance(hole, Value):
            name = f"{{{hole.name or 'input'}}}"
            turn = next((p.role for p in reversed(self.gen.prompt[: holes[0]]) if isinstance(p, Open | Close)), "")
            where = f" in the {turn} turn" if turn and not hole.is_messages else ""
            yield f"constant {self.counter.say(behind)} behind {name}{where}: 0 shared; put the text first if the answer allows"


# ---- host code and the verdict ---------------------------------------------------------------------------------------
def _opaque_lines(plan: Plan) -> Iterator[str]:
    for step in walk(plan.trace.steps):
        if isinstance(step, CallStep) and not isinstance(step.node, nodes.Parse):
            place = f" ({step.place})" if step.place else ""
            yield f"  {_called(step)}{place}: {_why(step.node)}"


def _called(step: CallStep) -> str:
    return step.node.name if isinstance(step.node, nodes.Call) else name_of(step.node.runnable)


def _why(node: nodes.Node) -> str:
    if isinstance(node, nodes.Configurable):
        return "known when it is called, from its configuration"
    if isinstance(node, nodes.Prompt):
        return "a prompt whose text only a call knows"
    if isinstance(node, nodes.Passthrough):
        return "its function sees the value go by"
    if isinstance(node, nodes.Call) and not node.is_known:
        return "nobody but itself knows what it does"
    return "pure host code" if isinstance(node, nodes.Call) and node.is_pure else "host code; runs once, in its place"


def _verdict(plan: Plan) -> Iterator[str]:
    reasons = plan.reasons
    if not reasons:
        yield "runs as a program: yes, where no callback, cache or listener could notice"
        return
    yield "runs as a program: no"
    yield from (f"  {reason}" for reason in reasons)


# ---- pieces and steps ------------------------------------------------------------------------------------------------
def _text(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def _constant_beginning(prompt: Sequence[Piece]) -> tuple[Piece, ...]:
    end = next((index for index, piece in enumerate(prompt) if isinstance(piece, Value)), len(prompt))
    constant = tuple(prompt[:end])
    return constant if any(isinstance(piece, Text) for piece in constant) else ()


def _are_arms(steps: Iterable[Step], one: GenStep, other: GenStep) -> bool:
    """Whether they stand in different arms of one fork."""
    for step in walk(steps):
        if isinstance(step, ForkStep):
            homes = [arm for arm in step.arms for gen in gens_of(arm.body) if gen is one or gen is other]
            if len(homes) == 2 and homes[0] is not homes[1]:
                return True
    return False


def _eaches(steps: Iterable[Step]) -> Iterator[EachStep]:
    return (step for step in walk(steps) if isinstance(step, EachStep))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

"""``listing``: a chain as the native program that it amounts to. For reading and for tests; ``programs`` run the real thing.

What the prompts of a part of the chain have in common is written first, on the stream ``s``, and each model then goes on from
there: on ``s`` itself where nobody needs it any more, on a copy or a fork of it otherwise. Text is shown as it is shared, cut at
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sgl_langchain.translate import nodes
from sgl_langchain.translate.plan import Plan
from sgl_langchain.translate.program_text import Expressions, gen_text, prompt_text, quoted
from sgl_langchain.translate.steps import (
    ArmStep,
    AttemptStep,
    CallStep,
    ChoiceStep,
    EachStep,
    ForkStep,
    GenStep,
    Open,
    Piece,
    Step,
    Text,
    Value,
    gens_of,
    pieces_behind,
    shared_pieces,
)
from sgl_langchain.translate.tracing import Trace

__all__ = ["listing"]

_WORTH_A_STREAM: Final = 32  # characters that several prompts share beyond what is written already, for a stream of their own


def listing(plan: Plan) -> str:
    """The program of a chain as text.

    A template with one variable that is given what a step made takes it as the value. Everything that is no prompt stands as
    ``call(name)(value)``; ``messages(value)`` are messages that a variable brings.
    """
    writer = _Writer(plan.trace)
    stream = _Stream("s", ())
    writer.steps(plan.trace.steps, stream)
    writer.line(f"return {writer.expressions.of(plan.trace.value)}")
    return "\n".join(["@sgl.function", "def program(s, input):", *writer.lines]) + "\n"


class _Stream:
    """A stream under way: its name in the program, and the pieces that have been written to it."""

    def __init__(self, name: str, written: tuple[Piece, ...]) -> None:
        self.name = name
        self.written = written


class _Writer:
    """Writes the lines of one program. ``expressions`` knows how a value is written where it is used."""

    def __init__(self, trace: Trace) -> None:
        self.lines: list[str] = []
        self.expressions = Expressions(trace.values)
        self._indent = 1
        self._counts: dict[str, int] = {}

    def line(self, text: str) -> None:
        self.lines.append("    " * self._indent + text)

    # ---- steps -------------------------------------------------------------------------------------------------------
    def steps(self, steps: Sequence[Step], stream: _Stream) -> None:
        """Write some steps that go on from ``stream``, the last of those with models on the stream itself."""
        with_models = [index for index, step in enumerate(steps) if any(gens_of((step,)))]
        if len(with_models) > 1:
            self._write(stream, self._known(steps))
        for index, step in enumerate(steps):
            self._step(step, stream, is_last=not with_models or index >= with_models[-1])

    def _step(self, step: Step, stream: _Stream, *, is_last: bool) -> None:
        if isinstance(step, GenStep):
            self._gen(step, stream if is_last else self._copy(stream))
        elif isinstance(step, CallStep):
            self._call(step)
        elif isinstance(step, ForkStep):
            self._fork(step, stream, is_last=is_last)
        elif isinstance(step, EachStep):
            self._each(step, stream, is_last=is_last)
        elif isinstance(step, ChoiceStep):
            self._choice(step, stream, is_last=is_last)
        elif isinstance(step, AttemptStep):
            self._attempt(step, stream, is_last=is_last)

    def _gen(self, step: GenStep, stream: _Stream) -> None:
        self._write(stream, step.prompt, gen_text(step))
        self.expressions.name(step.value, f'{stream.name}["{step.name}"]')

    def _call(self, step: CallStep) -> None:
        expression = self.expressions.call(step.node, step.argument)
        if step.value == step.argument:
            self.line(expression)  # its value is what it was given: it runs for its effect
        elif self.expressions.is_inline(step.node):
            self.expressions.name(step.value, expression)
        else:
            self._assign(step.value, expression)

    def _assign(self, value: int, expression: str) -> None:
        name = self._new_name("x1")
        self.line(f"{name} = {expression}")
        self.expressions.name(value, name)

    # ---- side by side ------------------------------------------------------------------------------------------------
    def _fork(self, step: ForkStep, stream: _Stream, *, is_last: bool) -> None:
        """A branch without a model needs no stream; with one model there is nobody to fork from."""
        asking = [arm for arm in step.arms if any(gens_of(arm.body))]
        if len(asking) < 2:
            for arm in step.arms:
                self.steps(arm.body, stream if is_last or arm not in asking else self._copy(stream))
            return
        base = self._base(asking, stream, is_last=is_last)
        forks = self._new_name("fs")
        self.line(f"{forks} = {base.name}.fork({len(asking)})")
        for arm in step.arms:
            name = f"{forks}[{asking.index(arm)}]" if arm in asking else base.name
            self.steps(arm.body, _Stream(name, base.written))

    def _base(self, steps: Sequence[Step], stream: _Stream, *, is_last: bool) -> _Stream:
        """A stream to fork from, with what all prompts inside ``steps`` begin with, if that is worth a stream."""
        known = self._known(steps)
        new = pieces_behind(stream.written, known)
        if not is_last:
            has_value = any(isinstance(piece, Value) for piece in new)
            if not has_value and sum(len(piece.text) for piece in new if isinstance(piece, Text)) < _WORTH_A_STREAM:
                return stream
            stream = self._copy(stream)
        self._write(stream, known)
        return stream

    def _each(self, step: EachStep, stream: _Stream, *, is_last: bool) -> None:
        over = self.expressions.of(step.over)
        if not any(gens_of(step.body)):
            self._loop(step, stream, over)
            return
        base = self._base([step], stream, is_last=is_last)
        forks, fork, element = self._new_name("fs"), self._new_name("f"), self._new_name("x1")
        self.expressions.name(step.element, element)
        self.line(f"{forks} = {base.name}.fork(len({over}))")
        loop_at = len(self.lines)
        self.line(f"for {fork}, {element} in zip({forks}, {over}):")
        self._indent += 1
        self.steps(step.body, _Stream(fork, base.written))
        result = self.expressions.of(step.result)
        if result.startswith(f"{fork}["):
            self._indent -= 1
            self._assign(step.value, f"[{result} for {fork} in {forks}]")
            return
        results = self._new_name("x1")
        self.line(f"{results}.append({result})")
        self._indent -= 1
        self.lines.insert(loop_at, "    " * self._indent + f"{results} = []")
        self.expressions.name(step.value, results)

    def _loop(self, step: EachStep, stream: _Stream, over: str) -> None:
        results, element = self._new_name("x1"), self._new_name("x1")
        self.expressions.name(step.element, element)
        self.line(f"{results} = []")
        self.line(f"for {element} in {over}:")
        self._indent += 1
        self.steps(step.body, stream)
        self.line(f"{results}.append({self.expressions.of(step.result)})")
        self._indent -= 1
        self.expressions.name(step.value, results)

    # ---- one of several ----------------------------------------------------------------------------------------------
    def _choice(self, step: ChoiceStep, stream: _Stream, *, is_last: bool) -> None:
        """Arms exclude each other, so all of them go on from one stream."""
        base = stream if is_last or not any(gens_of((step,))) else self._copy(stream)
        result = self._new_name("x1")
        indent = self._indent
        for index, arm in enumerate(step.arms):
            word = "if" if index == 0 else "elif"
            if index and any(not self._is_inline_test(arm, one) for one in arm.test):
                self.line("else:")
                self._indent += 1
                word = "if"
            self._test(arm, base)
            if arm.tested is not None:
                self.line(f"{word} {self.expressions.of(arm.tested)}:")
            elif isinstance(step.node, nodes.Router):
                self.line(f"{word} {self.expressions.of(step.argument)} == {quoted(arm.label)}:")
            else:
                self.line("else:")
            self._arm(arm, _Stream(base.name, base.written), result)
        self._indent = indent
        self.expressions.name(step.value, result)

    def _test(self, arm: ArmStep, stream: _Stream) -> None:
        """The steps of a condition; its last call stands in the ``if`` itself."""
        for step in arm.test:
            if isinstance(step, CallStep) and self._is_inline_test(arm, step):
                self.expressions.name(step.value, self.expressions.call(step.node, step.argument))
            else:
                self._step(step, stream, is_last=False)

    @staticmethod
    def _is_inline_test(arm: ArmStep, step: Step) -> bool:
        return isinstance(step, CallStep) and step.value == arm.tested

    def _attempt(self, step: AttemptStep, stream: _Stream, *, is_last: bool) -> None:
        """A stream on which something failed is of no further use, so all but the last attempt have one of their own."""
        result = self._new_name("x1")
        if isinstance(step.node, nodes.Retry):
            tries = getattr(step.node.runnable, "max_attempt_number", None)
            self.line(f"for attempt in range({tries}):  # until one does not fail")
            self._arm(step.arms[0], stream, result, has_copy=any(gens_of((step,))))
            self.line("    break")
        else:
            for index, arm in enumerate(step.arms):
                self.line("try:" if index == 0 else "except handled:")
                is_reusable = is_last and arm is step.arms[-1]
                self._arm(arm, stream, result, has_copy=any(gens_of(arm.body)) and not is_reusable)
        self.expressions.name(step.value, result)

    def _arm(self, arm: ArmStep, stream: _Stream, result: str, *, has_copy: bool = False) -> None:
        self._indent += 1
        self.steps(arm.body, self._copy(stream) if has_copy else stream)
        self.line(f"{result} = {self.expressions.of(arm.value)}")
        self._indent -= 1

    # ---- streams -----------------------------------------------------------------------------------------------------
    def _known(self, steps: Sequence[Step]) -> tuple[Piece, ...]:
        """What all prompts inside some steps begin with, as far as it can be written before the steps."""
        shared = list(shared_pieces([gen.prompt for gen in gens_of(tuple(steps))]))
        for index, piece in enumerate(shared):
            if isinstance(piece, Value) and not self.expressions.is_known(piece.number):
                del shared[index:]
                break
        while shared and isinstance(shared[-1], Open):
            shared.pop()
        return tuple(shared)

    def _write(self, stream: _Stream, prompt: tuple[Piece, ...], answer: str = "") -> None:
        """Extend a stream to ``prompt``; one that holds all of it stays as it is."""
        new = pieces_behind(stream.written, prompt)
        if new or answer:
            self.line(f"{stream.name} += {prompt_text(new, self.expressions, answer)}")
            stream.written = prompt

    def _copy(self, stream: _Stream) -> _Stream:
        name = self._new_name("t")
        self.line(f"{name} = {stream.name}.copy()")
        return _Stream(name, stream.written)

    def _new_name(self, first: str) -> str:
        """``first``, then the same stem with the next number."""
        self._counts[first] = self._counts.get(first, 0) + 1
        number = self._counts[first]
        return first if number == 1 else f"{first.rstrip('1')}{number}"

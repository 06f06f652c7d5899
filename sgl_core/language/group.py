"""The forks of a state, and how they come back together. Made by ``ProgramState.fork``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.ir import ConstantText, Expr, RawText, RoleBegin, RoleEnd
from sgl_core.language.position import Piece, pieces_since
from sgl_core.language.stream import StreamExecutor
from sgl_core.language.variables import VariableFuture
from sgl_core.types import SegmentKind

if TYPE_CHECKING:
    from sgl_core.language.state import ProgramState

__all__ = ["ForkGroup"]


class ForkGroup:
    """The streams of one ``fork``, in order."""

    def __init__(self, parent: ProgramState, states: tuple[ProgramState, ...]) -> None:
        """Made by ``ProgramState.fork``."""
        self._parent = parent
        self._states = states

    def __len__(self) -> int:
        """How many."""
        return len(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        """One of them."""
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """Allow ``forks[i] += expr``, which assigns the same state back."""
        if state is not self._states[index]:
            raise InvalidArgumentError(f"forks[{index}]", type(state).__name__, "the fork itself", "Use forks[i] += expr.")

    def __iter__(self) -> Iterator[ProgramState]:
        """All of them."""
        return iter(self._states)

    def __iadd__(self, expr: Any) -> Self:
        """Append to every fork: the same expression, one each from a list, or ``fn(i)`` for fork ``i``."""
        if isinstance(expr, list | tuple):
            if len(expr) != len(self):
                raise InvalidArgumentError("forks += [...]", f"{len(expr)} expressions", f"one for each of {len(self)} forks")
            exprs = list(expr)
        elif callable(expr):
            exprs = [expr(index) for index in range(len(self))]
        else:
            exprs = [expr] * len(self)
        for state, one in zip(self._states, exprs, strict=True):
            state += one
        return self

    def join(self, mode: str = "gather_variable", *, errors: str = "raise") -> None:
        """Wait for all forks and bring what they made back to the parent; writing to them is an error afterwards.

        Args:
            mode: "gather_variable" makes every variable that any fork set a list in the parent, one entry per fork, None
                where a fork did not set it. "concate_and_append" appends the forks' own text in order; that text is
                computed again.
            errors: "raise" raises the error of the first fork that failed; "keep" puts errors in their places. All of
                them then count as read.
        """
        self._close(mode, errors)
        for state in self._states:
            state.stream.barrier().result()
        self._bring_back(mode, errors)

    async def ajoin(self, mode: str = "gather_variable", *, errors: str = "raise") -> None:
        """Like ``join``, without blocking the loop."""
        self._close(mode, errors)
        for state in self._states:
            await state.stream.barrier().wait_async()
        self._bring_back(mode, errors)

    def _close(self, mode: str, errors: str) -> None:
        if mode not in ("gather_variable", "concate_and_append"):
            raise InvalidArgumentError("mode", mode, "gather_variable or concate_and_append")
        if errors not in ("raise", "keep"):
            raise InvalidArgumentError("errors", errors, "raise or keep")
        for state in self._states:
            state.stream.close()

    def _bring_back(self, mode: str, errors: str) -> None:
        failed = [state.stream.error for state in self._states if state.stream.error is not None]
        for error in failed:
            self._parent.run.mark_seen(error)
        if failed and errors == "raise":
            raise failed[0]
        if mode == "gather_variable":
            self._gather()
        else:
            self._append()

    def _gather(self) -> None:
        names = dict.fromkeys(name for state in self._states for name in state.stream.defined)
        for name in names:
            entries = [_entry(state.stream, name) for state in self._states]
            values = [value for value, _ in entries]
            self._parent.stream.define(VariableFuture.of(name, values, [meta for _, meta in entries]))

    def _append(self) -> None:
        for state in self._states:
            stream = state.stream
            if stream.error is None:
                self._parent.stream.submit(_as_nodes_again(pieces_since(stream.position.trail, stream.origin)))


def _entry(stream: StreamExecutor, name: str) -> tuple[Any, Mapping[str, Any]]:
    """What a fork contributes to a gathered variable (its value, its error, or None), and its meta info."""
    future = stream.find(name) if name in stream.defined else None
    if future is None:
        return stream.error, {}
    return (future.result() if future.error is None else future.error), future.meta


def _as_nodes_again(pieces: Sequence[Piece]) -> Iterator[Expr]:
    """The nodes that bring about the same text elsewhere; what was generated is text there."""
    for piece in pieces:
        if piece.kind is SegmentKind.TURN:
            yield RoleBegin(piece.role) if piece.opens else RoleEnd(piece.role)
        elif piece.kind is SegmentKind.RAW:
            yield RawText(piece.text)
        else:
            yield ConstantText(piece.text)

"""The forks of a state, and how they come back together. Made by ``ProgramState.fork``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.joining import appended_nodes, check_join, defined_names, first_error, gather
from sgl_core.language.variables import VariableFuture

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
        """One of them.

        Raises:
            IndexError: there is no fork of that number.
            InvalidArgumentError: it is no number.
        """
        if isinstance(index, str):
            cure = f"Read one fork's variable with forks[i][{index!r}], all of them with s[{index!r}] after forks.join()."
            raise InvalidArgumentError("forks[...]", index, "the number of a fork", cure)
        try:
            return self._states[index]
        except IndexError:
            raise IndexError(f"forks[{index}]: there are {len(self)} forks, and the first is number 0") from None

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
        check_join(mode, errors)
        for state in self._states:
            state.stream.close()

    def _bring_back(self, mode: str, errors: str) -> None:
        streams = [state.stream for state in self._states]
        error = first_error(streams, errors)
        if error is not None:
            raise error
        parent = self._parent.stream
        if mode == "concate_and_append":
            parent.submit(appended_nodes(streams))
            return
        for name in defined_names(streams):
            parent.define(VariableFuture.of(name, *gather(streams, name)))

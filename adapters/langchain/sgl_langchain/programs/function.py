"""A chain as a native program: an ``SglFunction`` whose body evaluates the chain in the program's own run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from sgl_core.errors import TraceError
from sgl_core.language.program import SglFunction
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_state import TracedState
from sgl_langchain.programs.calls import Calls
from sgl_langchain.translate.listing import listing
from sgl_langchain.translate.plan import Plan

if TYPE_CHECKING:
    from sgl_langchain.programs.program import RunnableProgram

__all__ = ["RunnableFunction"]


class RunnableFunction(SglFunction):
    """A program with the argument ``input``; ``str`` of it is the program as text.

    All of its models ask the program's backend, which is the first model's engine unless ``run(backend=...)`` names another.
    Host code runs by ``invoke``, also in ``arun``.

    Args:
        program: of the chain.
    """

    def __init__(self, program: RunnableProgram) -> None:
        """Make the body."""
        self._program = program

        def runnable(s: ProgramState, input: Any) -> Any:  # noqa: A002  (what LangChain calls it)
            if isinstance(s, TracedState):
                raise TraceError("it runs a LangChain runnable, whose steps need their values", "run it as it is")
            return program.run_in(Calls(s.run), input)

        runnable.__name__ = type(program.root.runnable).__name__
        super().__init__(runnable)

    @override
    def open(self, options: dict[str, Any]) -> ProgramState:
        """The state of a new run."""
        if options.get("backend") is None and (engine := self._program.engine) is not None:
            options["backend"] = engine
        return super().open(options)

    def __str__(self) -> str:
        return listing(Plan.of(self._program.root.runnable))

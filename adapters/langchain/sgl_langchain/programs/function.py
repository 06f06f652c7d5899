"""A chain as a native program: an ``SglFunction`` whose body evaluates the chain in the program's own run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from sgl_core.errors import InvalidArgumentError, TraceError
from sgl_core.language.program import SglFunction
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_state import TracedState
from sgl_langchain.programs.calls import Calls
from sgl_langchain.translate.engines import engine_key, engine_of
from sgl_langchain.translate.listing import listing
from sgl_langchain.translate.plan import Plan

if TYPE_CHECKING:
    from sgl_langchain.programs.program import RunnableProgram

__all__ = ["RunnableFunction"]

KeyT = TypeVar("KeyT")


class RunnableFunction(SglFunction):
    """A program with the argument ``input``; ``str`` of it is the program as text.

    All of its models ask the program's backend, in the program's namespace. These are the models' own unless ``run`` names others.
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
        """The state of a new run.

        Raises:
            InvalidArgumentError: the models are on several engines or in several namespaces, and ``options`` name none.
        """
        models = self._program.models
        if models and options.get("backend") is None:
            _check_one("backend", [engine_key(model)[0] for model in models], "engine")
            options["backend"] = engine_of(models[0])
        if models and options.get("namespace") is None:
            options["namespace"] = _check_one("namespace", [engine_key(model)[1] for model in models], "namespace")
        return super().open(options)

    def __str__(self) -> str:
        return listing(Plan.of(self._program.root.runnable))


def _check_one(option: str, keys: Sequence[KeyT], what: str) -> KeyT:
    """The one that all models have."""
    if any(key != keys[0] for key in keys):
        raise InvalidArgumentError(
            option,
            None,
            f"the {what} that all models of the chain are to run in, as they have several",
            "Or call the compiled runnable: each of its models keeps its own.",
        )
    return keys[0]

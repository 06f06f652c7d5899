"""What ``sgl_lower`` plugins build with: ``RunnableBuilder``. ``lower`` makes one for each runnable that it does not know.

::

    @hookimpl
    def sgl_lower(node, builder):
        if not isinstance(node, Twice):
            return None
        return builder.sequence(node, [builder.lower(node.step), builder.lower(node.step)])

Whatever is built must mean what ``node.invoke`` means: the same value for the same input, the same errors. What a plugin
cannot say with these methods it leaves opaque, with ``call``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.runnables import Runnable

from sgl_core.errors import InvalidArgumentError
from sgl_langchain.chat import ChatSgl
from sgl_langchain.llm import SglLLM
from sgl_langchain.translate import nodes
from sgl_langchain.translate.nodes import Node

__all__ = ["RunnableBuilder"]

_ANY_NODE: Final = "a node that this builder made"


class RunnableBuilder:
    """Makes nodes. Each method takes the foreign runnable first: the node stands for it in errors and listings.

    Args:
        lower: makes the node of a runnable, with keyword arguments for its calls.
    """

    def __init__(self, lower: Callable[[Runnable[Any, Any], Mapping[str, Any]], Node]) -> None:
        """Build nothing yet."""
        self._lower = lower

    def lower(self, runnable: Runnable[Any, Any], **options: Any) -> Node:
        """The node of any runnable, such as a part of the foreign one; ``options`` are arguments of its every call."""
        if not isinstance(runnable, Runnable):
            raise InvalidArgumentError(
                "runnable", type(runnable).__name__, "a Runnable", "Use call(..., fn=...) for a function."
            )
        return self._lower(runnable, options)

    def sequence(self, runnable: Runnable[Any, Any], steps: Sequence[Node]) -> nodes.Sequence:
        """One step after another, each with what the one before gave."""
        if not steps:
            raise InvalidArgumentError("steps", "no steps", "at least one node")
        return nodes.Sequence(runnable, _checked("steps", steps))

    def parallel(self, runnable: Runnable[Any, Any], branches: Mapping[str, Node]) -> nodes.Parallel:
        """The same input for every branch, and a dict of what they give."""
        return nodes.Parallel(runnable, tuple(zip(branches, _checked("branches", branches.values()), strict=True)))

    def each(self, runnable: Runnable[Any, Any], bound: Node) -> nodes.Each:
        """``bound`` for every element of the input, and a list of what it gives."""
        return nodes.Each(runnable, *_checked("bound", [bound]))

    def branch(self, runnable: Runnable[Any, Any], arms: Sequence[tuple[Node, Node]], default: Node) -> nodes.Branch:
        """The first arm whose condition gives something true, or ``default``; all with the same input.

        Args:
            runnable: the foreign runnable.
            arms: pairs of a condition and what runs if it holds.
            default: what runs if none does.
        """
        pairs = tuple((test, arm) for test, arm in (_checked("arms", pair) for pair in arms))
        return nodes.Branch(runnable, pairs, *_checked("default", [default]))

    def model(self, runnable: Runnable[Any, Any], model: ChatSgl | SglLLM, **options: Any) -> Node:
        """A call of a model of this package, with ``options`` for every call.

        Raises:
            InvalidArgumentError: ``model`` is another one, or of a class of its own.
        """
        if type(model) not in (ChatSgl, SglLLM):
            raise InvalidArgumentError("model", type(model).__name__, "a ChatSgl or SglLLM", "Use call(...) for other models.")
        node = nodes.Model(model, options, is_chat=isinstance(model, ChatSgl))
        return node if runnable is model else nodes.Binding(runnable, node, options)

    def call(
        self,
        runnable: Runnable[Any, Any],
        fn: Callable[[Any], Any] | None = None,
        *,
        name: str = "",
        is_pure: bool = False,
    ) -> nodes.Call:
        """Host code: ``fn`` of the input, or the runnable's own ``invoke`` where there is no ``fn``.

        Args:
            runnable: the foreign runnable.
            fn: the value to the value.
            name: for listings; the function's or the class's name by default.
            is_pure: it depends on nothing but its input and changes nothing.
        """
        if fn is not None and not callable(fn):
            raise InvalidArgumentError("fn", type(fn).__name__, "a function of one value, or None")
        return nodes.Call(runnable, name or getattr(fn, "__name__", type(runnable).__name__), is_pure, True, fn)


def _checked(argument: str, given: Iterable[Node]) -> tuple[Node, ...]:
    found = tuple(given)
    for node in found:
        if not isinstance(node, Node):
            raise InvalidArgumentError(argument, type(node).__name__, _ANY_NODE, "Use builder.lower(runnable).")
    return found

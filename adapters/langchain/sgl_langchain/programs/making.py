"""From the nodes of a chain to the operations that run it. Called once for each program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from sgl_langchain.programs import combining, handling, plain
from sgl_langchain.programs.models import AskChat, AskText
from sgl_langchain.programs.operation import Operation
from sgl_langchain.translate import nodes
from sgl_langchain.translate.nodes import Node

__all__ = ["operation_of"]


def operation_of(node: Node) -> Operation:
    """The operation of a node; whatever is known to nobody is host code."""
    make = _MAKERS.get(type(node))
    return plain.HostCall(node.runnable) if make is None else make(node)


def _call(node: nodes.Call) -> Operation:
    if node.fn is not None:
        return plain.Function(node.runnable, node.fn)
    if node.is_pure and hasattr(node.runnable, "func"):
        return plain.Pure(cast("Any", node.runnable))
    return plain.HostCall(node.runnable)


def _fallbacks(node: nodes.Fallbacks) -> Operation:
    return handling.Otherwise(cast("Any", node.runnable), [operation_of(child) for child in node.children()])


def _branch(node: nodes.Branch) -> Operation:
    arms = [(operation_of(condition), operation_of(arm)) for condition, arm in node.arms]
    return handling.Choose(arms, operation_of(node.default))


_MAKERS: Final[dict[type[Node], Callable[[Any], Operation]]] = {
    nodes.Sequence: lambda node: combining.Steps([operation_of(step) for step in node.steps]),
    nodes.Parallel: lambda node: combining.Side([(key, operation_of(branch)) for key, branch in node.branches]),
    nodes.Assign: lambda node: combining.Adding(operation_of(node.mapper)),
    nodes.Pick: lambda node: plain.Take(node.runnable),
    nodes.Passthrough: lambda node: plain.HostCall(node.runnable) if node.has_effect else plain.Identity(),
    nodes.Prompt: lambda node: plain.Format(node.runnable),
    nodes.Model: lambda node: AskChat(node) if node.is_chat else AskText(node),
    nodes.Parse: lambda node: plain.Read(node.runnable),
    nodes.Each: lambda node: combining.ForEach(operation_of(node.bound)),
    nodes.Branch: _branch,
    nodes.Router: lambda node: handling.Route([(key, operation_of(route)) for key, route in node.routes]),
    nodes.Fallbacks: _fallbacks,
    nodes.Retry: lambda node: handling.Again(node.runnable, operation_of(node.bound)),
    nodes.Binding: lambda node: combining.Bound(node, operation_of(node.bound)),
    nodes.Call: _call,
}

"""Why a chain may not run as a program: somebody would notice, or nobody knows what a step of it does.

A program calls no callback handler, keeps no cache of LangChain's and asks one engine. Where any of these is wanted, the chain
runs as it is, by LangChain's own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from langchain_core.globals import get_debug, get_llm_cache, get_verbose
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from sgl_core.plugins import get_host
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.tools import tool_set
from sgl_langchain.translate import nodes
from sgl_langchain.translate.nodes import Node

__all__ = ["Refusals"]


class Refusals:
    """The reasons against one chain: those that stay are found once, the others at every call.

    Args:
        root: the chain.
    """

    def __init__(self, root: Node) -> None:
        """Look through the chain."""
        models = [node for node in root.walk() if isinstance(node, nodes.Model)]
        self._models = tuple(cast("SglLanguageModel", node.runnable) for node in models)
        self._lasting = next(_lasting(root, models), None)

    def reason(self, config: RunnableConfig | None) -> str | None:
        """The first reason, or None."""
        return self._lasting or _of_models(self._models) or _of_call(config)


# ---- as long as the chain is what it is ------------------------------------------------------------------------------
def _lasting(root: Node, models: list[nodes.Model]) -> Iterator[str]:
    for node in root.walk():
        yield from _of_node(node)
    if len({_engine_key(model) for model in models}) > 1:
        yield "its models run on different engines, or in different namespaces"


def _of_node(node: Node) -> Iterator[str]:
    match node:
        case nodes.Call(is_known=False):
            yield f"nobody knows what {node.name} does with its configuration"
        case nodes.Configurable():
            yield f"{_name(node)} is known only when the configuration of a call is"
        case nodes.Binding() if node.factories:
            yield f"{_name(node.bound)} has listeners"
        case nodes.Binding() if node.config.get("callbacks"):
            yield f"{_name(node.bound)} has callbacks"
        case nodes.Model():
            yield from _of_options(_name(node), node.options)


def _of_options(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    if options.get("timeout") is not None:
        yield f"{name} has a timeout"
    if (options.get("n") or 1) != 1:
        yield f"{name} gives several answers"
    if options.get("stream"):
        yield f"{name} streams"
    tools = tool_set(options) if options.get("tools") else None
    if tools is not None and tools.choice == "auto":
        yield f"{name} chooses between tools and text, which takes two requests"


def _engine_key(node: nodes.Model) -> tuple[object, str | None]:
    model = cast("SglLanguageModel", node.runnable)
    namespace = node.options.get("namespace", model.namespace)
    if model.engine is not None:
        return id(model.engine), namespace
    other = node.options.get("model")
    return (model if other is None else model.model_copy(update={"model": other}))._engine_config(), namespace


def _name(node: Node) -> str:
    return type(node.runnable).__name__


# ---- now -------------------------------------------------------------------------------------------------------------
def _of_models(models: tuple[SglLanguageModel, ...]) -> str | None:
    global_cache = get_llm_cache()
    for model in models:
        reason = _of_model(model, has_global_cache=global_cache is not None)
        if reason is not None:
            return f"{type(model).__name__} {reason}"
    return None


def _of_model(model: SglLanguageModel, *, has_global_cache: bool) -> str | None:
    if model.cache is not False and (model.cache is not None or has_global_cache):
        return "answers from a cache of LangChain's"
    if model.callbacks:
        return "has callbacks"
    if model.verbose:
        return "is verbose"
    if model.streaming:
        return "streams"
    if model.timeout is not None:
        return "has a timeout"
    if (model.n or 1) != 1:
        return "gives several answers"
    if getattr(model, "rate_limiter", None) is not None:
        return "has a rate limiter"
    if getattr(model, "output_version", None) == "v1":
        return "gives content blocks (output_version v1)"
    return None


def _of_call(config: RunnableConfig | None) -> str | None:
    if get_debug() or get_verbose():
        return "LangChain's debug or verbose mode is on"
    if get_host().has_observers:
        return "a plugin observes requests"
    config = ensure_config(config)
    limit = config.get("max_concurrency")
    if limit is not None and limit < 1:
        return f"max_concurrency is {limit}"
    try:
        handlers = get_callback_manager_for_config(config).handlers
    except RuntimeError as error:  # the environment asks for tracing that LangChain has no more
        return str(error)
    return f"{type(handlers[0]).__name__} wants to be called" if handlers else None

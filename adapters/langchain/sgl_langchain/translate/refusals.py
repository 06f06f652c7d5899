"""Why a chain may not run as a program: somebody would notice, or nobody knows what a step of it does.

A program calls no callback handler, keeps no cache of LangChain's and asks one engine. Where any of these is wanted, the chain
runs as it is, by LangChain's own code. ``explain`` lists what lies in the chain, ``programs`` ask before every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from langchain_core.globals import get_debug, get_llm_cache, get_verbose
from langchain_core.runnables import RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from sgl_core.errors import SglError
from sgl_core.plugins import get_host
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.tools import tool_set
from sgl_langchain.translate import nodes
from sgl_langchain.translate.engines import engine_key
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
        self._lasting = tuple(dict.fromkeys(_lasting(root, models)))

    def reason(self, config: RunnableConfig | None = None) -> str | None:
        """The first reason against a call with this configuration, or None."""
        if self._lasting:
            return self._lasting[0]
        return next(_of_models(self._models), None) or _of_call(config)

    def of_chain(self) -> tuple[str, ...]:
        """All reasons that lie in the chain, as its models are now, each once: no configuration of a call helps."""
        return tuple(dict.fromkeys((*self._lasting, *_of_models(self._models))))


# ---- as long as the chain is what it is ------------------------------------------------------------------------------
def _lasting(root: Node, models: list[nodes.Model]) -> Iterator[str]:
    for node in root.walk():
        yield from _of_node(node)
    try:
        keys = [engine_key(model) for model in models]
    except SglError:  # LangChain's code says which, at its place in the chain
        yield "a model has an option that cannot be used"
        return
    if any(key != keys[0] for key in keys):
        yield "its models run on different engines, or in different namespaces"


def _of_node(node: Node) -> Iterator[str]:
    match node:
        case nodes.Call(is_known=False):
            yield f"only {node.name} itself knows what it does with its configuration"
        case nodes.Configurable():
            yield f"{_name(node)} is known only when the configuration of a call is"
        case nodes.Fallbacks() | nodes.Retry() if _handles_more(node.runnable):
            yield f"{_name(node)} handles exceptions that a program lets through"
        case nodes.Binding() if node.factories:
            yield f"{_name(node.bound)} has listeners"
        case nodes.Binding() if node.config.get("callbacks"):
            yield f"{_name(node.bound)} has callbacks"
        case nodes.Model():
            yield from _of_options(_name(node), node.options)


def _handles_more(runnable: Any) -> bool:
    """Whether a fallback or a retry is for errors that end a program (``SystemExit``), or that no generator can raise."""
    kinds = runnable.exceptions_to_handle if isinstance(runnable, RunnableWithFallbacks) else runnable.retry_exception_types
    if not isinstance(kinds, tuple):  # a function that is asked about each error
        return False
    return any(not issubclass(kind, Exception) or issubclass(kind, StopIteration) for kind in kinds)


def _of_options(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    if options.get("timeout") is not None:
        yield f"{name} has a timeout"
    if (options.get("n") or 1) != 1:
        yield f"{name} gives several answers"
    if options.get("stream"):
        yield f"{name} streams"
    try:
        tools = tool_set(options) if options.get("tools") else None
    except SglError:
        yield f"{name} has tools that cannot be used"
        return
    if tools is not None and tools.choice == "auto":
        yield f"{name} chooses between tools and text, which takes two requests"


def _name(node: Node) -> str:
    return type(node.runnable).__name__


# ---- now -------------------------------------------------------------------------------------------------------------
def _of_models(models: tuple[SglLanguageModel, ...]) -> Iterator[str]:
    has_global_cache = get_llm_cache() is not None
    for model in models:
        reason = _of_model(model, has_global_cache=has_global_cache)
        if reason is not None:
            yield f"{type(model).__name__} {reason}"


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

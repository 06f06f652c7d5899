"""From LangChain's objects to nodes: ``lower``, which walks public fields and never ``get_graph()``.

Called when a plan is made. What it knows, it knows by exact type: a subclass
may do anything. A kind that nobody here knows goes to the plugins, and then to a ``Call`` that runs as it is.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import _ChatModelBinding
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.output_parsers.base import BaseGenerationOutputParser
from langchain_core.prompts.base import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableAssign,
    RunnableBinding,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnablePick,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableEach
from langchain_core.runnables.configurable import RunnableConfigurableAlternatives, RunnableConfigurableFields
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.runnables.retry import RunnableRetry
from langchain_core.runnables.router import RouterRunnable
from langchain_core.tools import BaseTool

from sgl_core.plugins import PluginHookError, get_host
from sgl_langchain.chat import ChatSgl
from sgl_langchain.llm import SglLLM
from sgl_langchain.translate import nodes
from sgl_langchain.translate.builder import RunnableBuilder
from sgl_langchain.translate.nodes import Node

__all__ = ["is_own_kind", "lower", "name_of"]

_NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})
_MAX_DEPTH: Final = 100
_MAX_NODES: Final = 10_000
_PROTOCOL: Final = (
    *("invoke", "batch", "batch_as_completed", "stream", "transform"),
    *("ainvoke", "abatch", "abatch_as_completed", "astream", "atransform"),
)
_OPEN_KINDS: Final = (BaseLanguageModel, BaseRetriever, BaseTool)


def lower(runnable: Runnable[Any, Any], options: Mapping[str, Any] = _NO_OPTIONS) -> Node:
    """The node of a runnable.

    Args:
        runnable: any runnable; not changed, and kept by the node.
        options: keyword arguments that every call of it gets.

    Raises:
        PluginHookError: a plugin answered for one of its steps with something that is no node.
    """
    return _Lowering(0, [0]).lower(runnable, options)


def is_own_kind(runnable: Runnable[Any, Any]) -> bool:
    """Whether ``lower`` knows the kind by itself, and asks no plugin."""
    return _class_of(runnable) in _KINDS or _open_kind(runnable) is not None


def name_of(runnable: Runnable[Any, Any]) -> str:
    """What a listing calls it."""
    if type(runnable) is RunnableLambda:
        function = getattr(runnable, "func", None) or getattr(runnable, "afunc", None)
        if isinstance(function, operator.itemgetter | operator.attrgetter):
            return repr(function).removeprefix("operator.")
        name = str(getattr(runnable, "name", None) or getattr(function, "__name__", "lambda"))
        return "lambda" if name == "<lambda>" else name
    return str(getattr(runnable, "name", None) or type(runnable).__name__)


class _Lowering:
    """One walk; ``depth`` and ``count`` keep deep and densely shared objects from growing beyond all bounds."""

    def __init__(self, depth: int, count: list[int]) -> None:
        self._depth = depth
        self._count = count

    def lower(self, runnable: Runnable[Any, Any], options: Mapping[str, Any] = _NO_OPTIONS) -> Node:
        self._count[0] += 1
        if self._depth >= _MAX_DEPTH or self._count[0] > _MAX_NODES:
            return nodes.Call(runnable, name_of(runnable), is_known=False)
        deeper = _Lowering(self._depth + 1, self._count)
        kind = _KINDS.get(_class_of(runnable))
        if kind is not None:
            return kind(runnable, deeper, options)
        return _open_kind(runnable) or _transparent(runnable, deeper, options) or _from_plugins(runnable, deeper)


def _class_of(runnable: Runnable[Any, Any]) -> type:
    """Its class; of one with type arguments (``RunnableParallel[dict]``) the class that these were given to."""
    kind = type(runnable)
    origin = getattr(kind, "__pydantic_generic_metadata__", {}).get("origin")
    return kind if origin is None else origin


# ---- LangChain's own, by exact type ----------------------------------------------------------------------------------
_Kind = Callable[[Any, _Lowering, Mapping[str, Any]], Node]


def _sequence(runnable: RunnableSequence[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    first, *others = runnable.steps
    return nodes.Sequence(runnable, (walk.lower(first, options), *map(walk.lower, others)))


def _parallel(runnable: RunnableParallel[Any], walk: _Lowering, _: Mapping[str, Any]) -> nodes.Parallel:
    return nodes.Parallel(runnable, tuple((key, walk.lower(step)) for key, step in runnable.steps__.items()))


def _assign(runnable: RunnableAssign, walk: _Lowering, options: Mapping[str, Any]) -> Node:
    if _class_of(runnable.mapper) is not RunnableParallel:
        return nodes.Call(runnable, name_of(runnable), is_known=False)
    return nodes.Assign(runnable, _parallel(runnable.mapper, walk, options))


def _pick(runnable: RunnablePick, _: _Lowering, __: Mapping[str, Any]) -> Node:
    return nodes.Pick(runnable, runnable.keys if isinstance(runnable.keys, str) else tuple(runnable.keys))


def _passthrough(runnable: RunnablePassthrough[Any], _: _Lowering, __: Mapping[str, Any]) -> Node:
    return nodes.Passthrough(runnable, has_effect=runnable.func is not None or runnable.afunc is not None)


def _each(runnable: RunnableEach[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    return nodes.Each(runnable, walk.lower(runnable.bound, options))


def _branch(runnable: RunnableBranch[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    arms = tuple((walk.lower(test), walk.lower(arm, options)) for test, arm in runnable.branches)
    return nodes.Branch(runnable, arms, walk.lower(runnable.default, options))


def _router(runnable: RouterRunnable[Any], walk: _Lowering, _: Mapping[str, Any]) -> Node:
    return nodes.Router(runnable, tuple((key, walk.lower(route)) for key, route in runnable.runnables.items()))


def _fallbacks(runnable: RunnableWithFallbacks[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    others = tuple(walk.lower(other, options) for other in runnable.fallbacks)
    return nodes.Fallbacks(runnable, walk.lower(runnable.runnable, options), others)


def _retry(runnable: RunnableRetry[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    bound = walk.lower(runnable.bound, {**runnable.kwargs, **options})
    return nodes.Retry(runnable, _bound(runnable, bound))


def _binding(runnable: RunnableBinding[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node:
    merged = {**runnable.kwargs, **options}
    bound = walk.lower(runnable.bound, merged)
    return nodes.Binding(runnable, bound, merged, runnable.config, tuple(runnable.config_factories))


def _bound(runnable: RunnableRetry[Any, Any], bound: Node) -> Node:
    """What is retried, with arguments and configuration of the retry itself if it has any."""
    if not (runnable.kwargs or runnable.config or runnable.config_factories):
        return bound
    return nodes.Binding(runnable.bound, bound, dict(runnable.kwargs), runnable.config, tuple(runnable.config_factories))


def _lambda(runnable: RunnableLambda[Any, Any], _: _Lowering, __: Mapping[str, Any]) -> Node:
    is_pure = isinstance(getattr(runnable, "func", None), operator.itemgetter | operator.attrgetter)
    return nodes.Call(runnable, name_of(runnable), is_pure=is_pure)


def _call(runnable: Runnable[Any, Any], _: _Lowering, __: Mapping[str, Any]) -> Node:
    return nodes.Call(runnable, name_of(runnable))


def _configurable(runnable: Runnable[Any, Any], _: _Lowering, __: Mapping[str, Any]) -> Node:
    return nodes.Configurable(runnable)


def _chat(runnable: ChatSgl, _: _Lowering, options: Mapping[str, Any]) -> Node:
    return nodes.Model(runnable, options)


def _llm(runnable: SglLLM, _: _Lowering, options: Mapping[str, Any]) -> Node:
    return nodes.Model(runnable, options, is_chat=False)


_KINDS: Final[dict[type, _Kind]] = {
    RunnableSequence: _sequence,
    RunnableParallel: _parallel,
    RunnableAssign: _assign,
    RunnablePick: _pick,
    RunnablePassthrough: _passthrough,
    RunnableEach: _each,
    RunnableBranch: _branch,
    RouterRunnable: _router,
    RunnableWithFallbacks: _fallbacks,
    RunnableRetry: _retry,
    RunnableBinding: _binding,
    _ChatModelBinding: _binding,
    RunnableLambda: _lambda,
    RunnableGenerator: _call,
    RunnableWithMessageHistory: _call,
    RunnableConfigurableFields: _configurable,
    RunnableConfigurableAlternatives: _configurable,
    ChatSgl: _chat,
    SglLLM: _llm,
}


# ---- kinds that are meant to be subclassed ---------------------------------------------------------------------------
def _open_kind(runnable: Runnable[Any, Any]) -> Node | None:
    """Prompts, parsers, models, retrievers and tools, as long as they leave the ways to run them to LangChain."""
    if isinstance(runnable, ChatSgl | SglLLM) or not _runs_as_langchain_does(type(runnable)):
        return None
    if isinstance(runnable, BasePromptTemplate):
        return nodes.Prompt(runnable)
    if isinstance(runnable, BaseOutputParser | BaseGenerationOutputParser):
        return nodes.Call(runnable, name_of(runnable)) if _has_runnables(runnable) else nodes.Parse(runnable)
    if isinstance(runnable, _OPEN_KINDS):
        return nodes.Call(runnable, name_of(runnable))
    return nodes.Call(runnable, name_of(runnable)) if type(runnable).__module__.startswith("langchain_core.") else None


def _runs_as_langchain_does(kind: type) -> bool:
    """Whether no class outside LangChain's core overrides one of the ways to run it; a language model may, for it is opaque."""
    if issubclass(kind, BaseLanguageModel):
        return True
    return all(_home(kind, name).startswith("langchain_core.") for name in _PROTOCOL)


def _home(kind: type, name: str) -> str:
    return next((base.__module__ for base in kind.__mro__ if name in vars(base)), "")


def _has_runnables(parser: Any) -> bool:
    """A parser that asks somebody else (a model, to mend what it cannot read) is no pure function."""
    return any(isinstance(getattr(parser, name), Runnable) for name in type(parser).model_fields)


# ---- everything else -------------------------------------------------------------------------------------------------
def _transparent(runnable: Runnable[Any, Any], walk: _Lowering, options: Mapping[str, Any]) -> Node | None:
    """A compiled runnable inside another one is what it was made of. If there is one, its module has been imported."""
    compiled = sys.modules.get("sgl_langchain.compiled")
    if compiled is None or type(runnable) is not compiled.CompiledRunnable:
        return None
    return _binding(runnable, walk, options)  # type: ignore[arg-type]  # it has the fields of a binding


def _from_plugins(runnable: Runnable[Any, Any], walk: _Lowering) -> Node:
    lowered = get_host().lower(runnable, RunnableBuilder(walk.lower))
    if lowered is None:
        return nodes.Call(runnable, name_of(runnable), is_known=False)
    if not isinstance(lowered, Node):
        given = type(lowered).__name__
        raise PluginHookError(
            f"sgl_lower: a plugin answered for a {type(runnable).__name__} with {given}, expected a node of the builder or None. "
            "Return what builder.sequence, .parallel, .call or another of its methods made."
        )
    return lowered

"""A runnable again, with some of its parts replaced: models on a borrowed engine, configurable parts as a call would have them.

``sgl_langchain.compiled`` and ``translate.reorder`` call it. Whatever holds a replaced part is copied, everything else is shared: a prompt of the copy
is the very prompt of the original, so what is appended to one is in both. What LangChain cannot show us (functions, tools,
graphs, other people's classes) is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

from sgl_core.backend import Backend
from sgl_langchain.base import ENGINE_FIELDS, SglLanguageModel

__all__ = ["on_engine", "prepared", "rewritten"]

_HOME: Final = "langchain_core.runnables."
_FOR_CALLS: Final = frozenset({"kwargs", "config", "config_factories"})  # values of the caller's, whatever they hold

Replace = Callable[[Runnable[Any, Any]], Runnable[Any, Any]]


def on_engine(runnable: Runnable[Any, Any], engine: Backend) -> Runnable[Any, Any]:
    """The runnable with every model on ``engine`` that names none of its own: neither an engine, nor a model, nor its options.

    Returns:
        A copy where there is such a model, the runnable itself where there is none.
    """

    def replace(part: Runnable[Any, Any]) -> Runnable[Any, Any]:
        if isinstance(part, SglLanguageModel) and _is_open(part):
            return part.model_copy(update={"engine": engine, "model": None})
        return part

    return rewritten(runnable, replace)


def prepared(runnable: Runnable[Any, Any], config: RunnableConfig | None) -> Runnable[Any, Any]:
    """The runnable with its configurable parts as a call with ``config`` would run them; itself if it has none.

    What else a configurable part makes of the configuration is left out, so this is to look at and not to call.
    """

    def replace(part: Runnable[Any, Any]) -> Runnable[Any, Any]:
        return part.prepare(config)[0] if isinstance(part, DynamicRunnable) else part

    return rewritten(runnable, replace)


def rewritten(runnable: Runnable[Any, Any], replace: Replace) -> Runnable[Any, Any]:
    """The runnable with every part, itself included, as ``replace`` gives it.

    Args:
        runnable: not changed.
        replace: called with each runnable that LangChain shows, from the outside in; gives another one, or the same.

    Returns:
        A copy where a part was replaced, the runnable itself where none was.
    """
    return cast("Runnable[Any, Any]", _rewritten(runnable, replace))


def _rewritten(part: Any, replace: Replace) -> Any:
    """A part with whatever is to be replaced in it; the part itself if that is nothing."""
    if isinstance(part, Runnable):
        return _rewritten_fields(replace(part), replace)
    if isinstance(part, Mapping):
        changed = {key: _rewritten(value, replace) for key, value in part.items()}
        return part if _are_same(part.values(), changed.values()) else changed
    if type(part) in (list, tuple):
        values = [_rewritten(value, replace) for value in part]
        return part if _are_same(part, values) else type(part)(values)
    return part


def _rewritten_fields(runnable: Runnable[Any, Any], replace: Replace) -> Runnable[Any, Any]:
    if not isinstance(runnable, BaseModel) or not type(runnable).__module__.startswith(_HOME):
        return runnable
    fields = {name: getattr(runnable, name) for name in type(runnable).model_fields if name not in _FOR_CALLS}
    new = {name: _rewritten(value, replace) for name, value in fields.items()}
    update = {name: value for name, value in new.items() if value is not fields[name]}
    return runnable.model_copy(update=update) if update else runnable


def _are_same(old: Any, new: Any) -> bool:
    return all(a is b for a, b in zip(old, new, strict=True))


def _is_open(model: SglLanguageModel) -> bool:
    """Whether its author left it open where it runs. The default of ``model`` may come from the environment: that is open."""
    return model.engine is None and not any(getattr(model, name) for name in ENGINE_FIELDS if name in model.model_fields_set)

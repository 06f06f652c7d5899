"""The hooks that a plugin may implement, and the values that cross them. Plugins import this; only the host calls it.

A plugin is a module (or an object) with functions that ``@hookimpl`` marks. It may leave hooks out, and leave out arguments
of those that it has. Adding a hook or an argument does not change ``API_VERSION``; removing one or changing its meaning does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import pluggy

from sgl_core.backend import Backend, Handle
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import FinishReason, GenResult, Timings, Usage

__all__ = [
    "API_VERSION",
    "PROJECT",
    "AdapterSpec",
    "RequestRecord",
    "hookimpl",
    "sgl_adapter",
    "sgl_create_backend",
    "sgl_lower",
    "sgl_request_finished",
    "sgl_translate",
]

API_VERSION: Final = 1
"""The version of these hooks. A plugin states the number that it was written for."""

PROJECT: Final = "sgl_core"
"""The project name that the marks carry."""

hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter: what it is called, what it needs, how to make one.

    Args:
        name: the name that users type; the same as that of its entry point.
        api_version: the ``API_VERSION`` that it was written for, as a number of its own.
        create: makes what users of the adapter hold (a chat model, an LM, an engine) from options by keyword. It imports
            its framework inside, so that loading a plugin stays cheap.
        requires: top-level modules of the framework; loading the adapter without them is an error with the install line.
        extra: the extra of the plugin's own distribution that installs them; empty when they are plain requirements.

    Raises:
        InvalidArgumentError: for the first field that cannot be used.
    """

    name: str
    api_version: int
    create: Callable[..., object]
    requires: tuple[str, ...] = ()
    extra: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.name, str) or not self.name:
            raise InvalidArgumentError("name", self.name, "the name of the adapter's entry point")
        if isinstance(self.api_version, bool) or not isinstance(self.api_version, int):
            raise InvalidArgumentError("api_version", self.api_version, "an int")
        if not callable(self.create):
            raise InvalidArgumentError("create", type(self.create).__name__, "a callable that takes options by keyword")
        modules = isinstance(self.requires, tuple) and all(isinstance(m, str) and m.isidentifier() for m in self.requires)
        if not modules:
            raise InvalidArgumentError("requires", self.requires, "a tuple of top-level module names")
        if not isinstance(self.extra, str):
            raise InvalidArgumentError("extra", self.extra, "the name of an extra, or an empty string")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that has ended. Numbers only: an observer never sees a prompt or an answer.

    Args:
        request_id: the handle's id.
        adapter: the adapter that sent it.
        finish_reason: why it ended; None when it failed.
        usage: its token counts; None when it failed.
        timings: seconds per phase.
        error: what it failed with, or None.
    """

    request_id: str
    adapter: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings = field(default_factory=Timings)
    error: BaseException | None = None

    @classmethod
    def of(cls, handle: Handle[GenResult], adapter: str) -> RequestRecord:
        """Read a handle that is done; several completions of one prompt are one request.

        Raises:
            TimeoutError: it is not done.
        """
        error = handle.error()
        if error is not None:
            return cls(handle.id, adapter, error=error)
        given: GenResult | list[GenResult] = handle.result(0)
        results = given if isinstance(given, list) else [given]
        first = results[0]
        completion_tokens = sum(result.usage.completion_tokens for result in results)
        usage = replace(first.usage, completion_tokens=completion_tokens)  # the prompt was one, however many answers it has
        return cls(handle.id, adapter, first.finish_reason, usage, first.timings)


@hookspec
def sgl_adapter() -> AdapterSpec:  # type: ignore[empty-body]  # a specification: pluggy never calls it
    """Say what this adapter is. The one hook that every plugin implements; called when the adapter is loaded."""


@hookspec(firstresult=True)
def sgl_translate(target: object, options: Mapping[str, object]) -> object | None:
    """Make a program of a foreign object (a chain, a module). Stops at the first result that is not None.

    Args:
        target: the object; return None for one that is not yours, without importing your framework to find out.
        options: the caller's options; read only.
    """


@hookspec(firstresult=True)
def sgl_lower(node: object, builder: object) -> object | None:
    """Lower one node of a foreign object while its adapter translates it. Stops at the first result that is not None.

    It lets a third party teach an adapter new kinds of nodes; adapters ask the host before they give up on a node, and
    implement it themselves with ``trylast=True``.

    Args:
        node: the node; return None for a kind that is not yours.
        builder: what the adapter that translates offers to build with; its page says what that is.
    """


@hookspec(firstresult=True)
def sgl_create_backend(target: str, options: Mapping[str, object]) -> Backend | None:
    """Open a backend for a URL. Stops at the first result that is not None.

    Args:
        target: the URL; return None for a scheme that is not yours.
        options: the caller's options; read only.
    """


@hookspec
def sgl_request_finished(record: RequestRecord) -> None:
    """Observe a request that has ended: once a request, never once a token.

    It runs on the thread that finished the request, so it must be short. What it raises is logged and goes no further.
    """

"""What a program's author asks of a backend besides running programs: to forget, and to say what it is.

A backend need not be able to; the ``Backend`` protocol has neither. So both are found by name, and their absence is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from sgl_core.backend import Backend
from sgl_core.errors import NotYetAvailableError
from sgl_core.language.defaults import checked_backend, get_default_backend

__all__ = ["flush_cache", "get_server_info", "server_info"]


@runtime_checkable
class _Flushes(Protocol):
    def flush_cache(self) -> None: ...


@runtime_checkable
class _Informs(Protocol):
    def info(self) -> Mapping[str, Any]: ...


def flush_cache(backend: Backend | None = None) -> None:
    """Drop every cached prefix that no running request uses and no pin keeps. Changes no result.

    Args:
        backend: None is the default one.

    Raises:
        InvalidArgumentError: it is no backend, or there is no default one.
        NotYetAvailableError: the backend keeps no cache that it could drop.
    """
    chosen = _chosen(backend)
    if not isinstance(chosen, _Flushes):
        raise NotYetAvailableError(f"{type(chosen).__name__} has no cache to flush; pass backend=..., an engine")
    chosen.flush_cache()


def get_server_info(backend: Backend | None = None) -> dict[str, Any]:
    """What a backend says about itself: model, device, context, pool, counters, whatever it knows, as plain values.

    Args:
        backend: None is the default one.

    Raises:
        InvalidArgumentError: it is no backend, or there is no default one.
        NotYetAvailableError: the backend says nothing about itself.
    """
    return server_info(_chosen(backend))


def server_info(engine_like: object) -> dict[str, Any]:
    """The same of anything that has ``info()``; a copy, so that it may be changed.

    Raises:
        NotYetAvailableError: it has none.
    """
    if not isinstance(engine_like, _Informs):
        raise NotYetAvailableError(f"{type(engine_like).__name__} says nothing about itself; pass backend=..., an engine")
    return dict(engine_like.info())


def _chosen(backend: Backend | None) -> Backend:
    return get_default_backend() if backend is None else checked_backend(backend)

"""The default backend: what ``run()`` uses without ``backend=``. One per process, made at its first use."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError

__all__ = ["checked_backend", "get_default_backend", "set_default_backend"]

_CURE = "Pass backend=..., or call set_default_backend(...) once."


class _DefaultBackend:
    """A backend, or how to get one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._factory: Callable[[], Backend] | None = None

    def set(self, backend: Backend | Callable[[], Backend] | None) -> None:
        with self._lock:
            self._backend = self._factory = None
            if backend is None:
                return
            if not isinstance(backend, type) and isinstance(backend, Backend):
                self._backend = backend
            elif callable(backend):
                self._factory = backend
            else:
                raise InvalidArgumentError("backend", type(backend).__name__, "a backend, or a callable that returns one")

    def get(self) -> Backend:
        with self._lock:
            if self._backend is None:
                if self._factory is None:
                    raise InvalidArgumentError("backend", None, "a backend", _CURE)
                self._backend = checked_backend(self._factory())
            return self._backend


_default = _DefaultBackend()


def set_default_backend(backend: Backend | Callable[[], Backend] | None) -> None:
    """Set what programs run on without ``backend=``.

    Args:
        backend: a backend, a callable without arguments that makes one at the first use, or None for no default. It
            stays its caller's to close.
    """
    _default.set(backend)


def get_default_backend() -> Backend:
    """The default backend, made now if it was given as a callable.

    Raises:
        InvalidArgumentError: there is none.
    """
    return _default.get()


def checked_backend(backend: object) -> Backend:
    """The argument, if it is a backend.

    Raises:
        InvalidArgumentError: it is not.
    """
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise InvalidArgumentError("backend", type(backend).__name__, "an object with submit(), score() and a codec", _CURE)
    return backend

"""One way to a backend: borrowed from its owner, or leased from the registry when the first request needs it.

The engines of this package are handles on a ``BackendRef``; a pair of them and all copies of an LM share one. It owns its
lease and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import fields
from typing import Any

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime import registry
from sgl_core.runtime.model_source import resolve_model
from sgl_dspy.labels import model_label

__all__ = ["BackendRef"]


class BackendRef:
    """A backend, now or later.

    Args:
        source: options of the engine to lease, or a backend that somebody else owns and closes.

    Raises:
        InvalidArgumentError: ``source`` is neither.
    """

    def __init__(self, source: EngineConfig | Backend) -> None:
        """Keep the source; nothing is loaded."""
        self._config: EngineConfig | None = None
        self._backend: Backend | None = None
        if isinstance(source, EngineConfig):
            self._config = source
        elif isinstance(source, Backend):
            self._backend = source
        else:
            expected = "a backend such as sgl_native.Engine()"
            raise InvalidArgumentError(
                "backend", type(source).__name__, expected, "For a model by name or path write model=..."
            )
        self._lock = threading.Lock()
        self._lease: registry.EngineLease | None = None
        self._give_back: weakref.finalize[Any, Any] | None = None
        self._label: str | None = None

    def get(self) -> Backend:
        """The backend; the first caller leases it while others wait.

        Raises:
            ModelError: the model cannot be found, read or served.
            MissingExtraError: the runtime is not installed.
        """
        with self._lock:
            if self._backend is None:
                assert self._config is not None, "a reference has options or a backend"
                self._lease = registry.acquire(self._config)
                self._backend = self._lease.engine
                self._give_back = weakref.finalize(self, _close_elsewhere, self._lease)
                self._give_back.atexit = False  # engines see to the end of the process themselves
            return self._backend

    async def get_async(self) -> Backend:
        """The same for an event loop, which goes on while weights are loaded."""
        backend = self._backend
        return backend if backend is not None else await asyncio.to_thread(self.get)

    def close(self) -> None:
        """Give the lease back; a later ``get`` leases anew. A borrowed backend stays as it is."""
        with self._lock:
            if self._lease is None or self._give_back is None:
                return
            self._give_back.detach()
            lease, self._lease, self._give_back, self._backend = self._lease, None, None, None
        lease.close()

    @property
    def label(self) -> str:
        """What DSPy calls this model, in cache keys too; known without loading weights.

        Raises:
            ModelError: the model cannot be found.
        """
        if self._label is None:
            self._label = self._make_label()
        return self._label

    def options(self) -> dict[str, Any]:
        """The options that differ from the defaults.

        Raises:
            InvalidArgumentError: the backend is borrowed.
        """
        config = self._portable()
        return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}

    def __reduce__(self) -> tuple[type[BackendRef], tuple[EngineConfig]]:
        """Options only: another process makes or finds its own engine."""
        return BackendRef, (self._portable(),)

    def _portable(self) -> EngineConfig:
        if self._config is None:
            raise InvalidArgumentError(
                "backend",
                f"a borrowed {type(self._backend).__name__}",
                "an engine made from options, for pickle or a saved program",
                "Use SglLM(model, engine_options={...}), or set the LM again after loading.",
            )
        return self._config

    def _make_label(self) -> str:
        if self._config is not None:
            source = resolve_model(self._config.model, Environment.read())
            return model_label(source.name, source.fingerprint, source.path, self._config.dtype)
        backend = self._backend
        facts = getattr(backend, "facts", None)  # what an Engine knows of its model, and no other backend does
        if facts is not None:
            dtype = getattr(getattr(backend, "config", None), "dtype", None)
            return model_label(facts.name, facts.fingerprint, facts.folder, dtype)
        codec = getattr(backend, "codec", None)
        return model_label(type(backend).__name__, "" if codec is None else codec.fingerprint, None, None)


def _close_elsewhere(lease: registry.EngineLease) -> None:
    """Give a lease back from the garbage collector, which may be running anywhere, under the registry's lock too."""
    threading.Thread(target=lease.close, name="sgl-dspy-give-back").start()

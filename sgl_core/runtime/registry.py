"""Engines shared within the process: callers that want the same model with the same options get the same engine.

One of the two things that are per process (the other is the language's default backend). Importing this module is light:
the engine is imported when the first one is made.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import EngineShutdown, MissingExtraError
from sgl_core.runtime.model_source import resolve_model

if TYPE_CHECKING:
    from sgl_core.runtime.engine import Engine

__all__ = ["EngineLease", "acquire", "engine_class"]

_RUNTIME_MODULES = ("torch", "transformers", "tokenizers", "safetensors", "gguf")
_Key = tuple[str, EngineConfig]


@dataclass(slots=True)
class _Entry:
    """One shared engine; made by the first caller while the others wait for the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    leases: int = 0


_entries: dict[_Key, _Entry] = {}
_entries_lock = threading.RLock()  # a finalizer may give a lease back while this very thread is inside


class EngineLease:
    """The right to use a shared engine until ``close``; the engine closes with its last lease."""

    def __init__(self, key: _Key, engine: Engine) -> None:
        self._key = key
        self._engine: Engine | None = engine
        self._lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            EngineShutdown: this lease was closed.
        """
        engine = self._engine
        if engine is None:
            raise EngineShutdown("this lease is closed; acquire a new one")
        return engine

    def close(self) -> None:
        """Give the lease back; idempotent."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            _release(self._key)

    def __enter__(self) -> Self:
        """The lease itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Give it back."""
        self.close()


def acquire(spec: EngineConfig | None = None) -> EngineLease:
    """Lease the engine for ``spec``, starting it if nobody has it.

    Engines are shared by the fingerprint of the model's files and all other options.

    Args:
        spec: None is the default engine on the embedded model.

    Raises:
        ModelError: the model cannot be found, read or served.
    """
    spec = EngineConfig() if spec is None else spec
    key = (resolve_model(spec.model, Environment.read()).fingerprint, replace(spec, model=None))
    with _entries_lock:
        entry = _entries.setdefault(key, _Entry())
        entry.leases += 1
    try:
        with entry.lock:
            if entry.engine is None:
                entry.engine = engine_class().from_config(spec)
            return EngineLease(key, entry.engine)
    except BaseException:
        _release(key)
        raise


def engine_class() -> type[Engine]:
    """The class ``Engine``, imported now.

    Raises:
        MissingExtraError: the runtime's packages are not installed.
    """
    try:
        from sgl_core.runtime.engine import Engine
    except ModuleNotFoundError as error:
        if error.name not in _RUNTIME_MODULES:
            raise
        raise MissingExtraError("runtime", error.name) from error
    return Engine


def _forget() -> None:
    """In a forked child: the engines are the parent's, and so may be the lock."""
    global _entries_lock
    _entries_lock = threading.RLock()
    _entries.clear()


os.register_at_fork(after_in_child=_forget)


def _release(key: _Key) -> None:
    with _entries_lock:
        entry = _entries.get(key)
        if entry is None:  # a lease of the parent process
            return
        entry.leases -= 1
        if entry.leases:
            return
        del _entries[key]
    if entry.engine is not None:
        entry.engine.close()

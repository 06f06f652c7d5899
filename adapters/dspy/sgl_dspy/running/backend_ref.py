"""One way to a backend: borrowed from its owner, or leased from the registry when the first request needs it.

The engines of this package are handles on a ``BackendRef``; a pair of them and all copies of an LM share one. It owns its
lease, and knows what is under way.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.leases import EngineLeases
from sgl_core.runtime.model_source import resolve_model
from sgl_dspy.labels import model_label
from sgl_dspy.running.flights import Flights
from sgl_dspy.running.prefix_pins import PrefixPins

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
        # A class has all methods of a backend, too.
        if isinstance(source, type) or not isinstance(source, EngineConfig | Backend):
            expected = "a backend such as sgl_native.Engine()"
            raise InvalidArgumentError(
                "backend", type(source).__name__, expected, "For a model by name or path write model=..."
            )
        self._source = source
        self._leases = EngineLeases()
        self._label: str | None = None
        self.flights = Flights()
        """What is under way on it."""
        self.pins = PrefixPins()
        """What its callers want to be kept."""

    def get(self) -> Backend:
        """The backend; the first caller leases it while others wait.

        Raises:
            ModelError: the model cannot be found, read or served.
            MissingExtraError: the runtime is not installed.
        """
        source = self._source
        return self._leases.engine(source) if isinstance(source, EngineConfig) else source

    def peek(self) -> Backend | None:
        """The backend if it is there; loads nothing."""
        source = self._source
        return self._leases.held(source) if isinstance(source, EngineConfig) else source

    async def get_async(self) -> Backend:
        """The same for an event loop, which goes on while weights are loaded."""
        source = self._source
        return await self._leases.aengine(source) if isinstance(source, EngineConfig) else source

    def close(self) -> None:
        """Give pins and lease back; a later ``get`` leases anew. A borrowed backend stays as it is."""
        self.pins.close()
        self._leases.close()

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
        if not isinstance(self._source, EngineConfig):
            raise InvalidArgumentError(
                "backend",
                f"a borrowed {type(self._source).__name__}",
                "an engine made from options, for pickle or a saved program",
                "Use SglLM(model, engine_options={...}), or set the LM again after loading.",
            )
        return self._source

    def _make_label(self) -> str:
        backend = self._source
        if isinstance(backend, EngineConfig):
            source = resolve_model(backend.model, Environment.read())
            return model_label(source.name, source.fingerprint, source.path, backend.dtype)
        facts = getattr(backend, "facts", None)  # what an Engine knows of its model, and no other backend does
        if facts is not None:
            dtype = getattr(getattr(backend, "config", None), "dtype", None)
            return model_label(facts.name, facts.fingerprint, facts.folder, dtype)
        codec = getattr(backend, "codec", None)
        return model_label(type(backend).__name__, "" if codec is None else codec.fingerprint, None, None)

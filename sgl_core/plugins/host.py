"""The plugin host: knows which adapters are installed, loads them when they are wanted, calls their hooks.

Adapters and whoever wants one by name call it, through ``get_host()``. It owns which plugins are loaded and what went wrong
with the others. Its methods are the typed face of the hooks; all of them are safe from any thread.
"""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from sgl_core.backend import Backend
from sgl_core.config import Environment
from sgl_core.errors import InvalidArgumentError, MissingExtraError, SglError
from sgl_core.plugins.discovery import AdapterSource, installed_adapters
from sgl_core.plugins.errors import AdapterNotFoundError, DuplicateAdapterError, PluginHookError
from sgl_core.plugins.hookspecs import AdapterSpec, RequestRecord
from sgl_core.plugins.loading import PluginSet, open_plugin

__all__ = ["AdapterReport", "AdapterState", "PluginHost", "get_host"]

_log = logging.getLogger(__name__)


class AdapterState(StrEnum):
    """How far an installed adapter has come."""

    INSTALLED = "installed"
    """A distribution announces it; nobody has asked for it yet."""
    LOADED = "loaded"
    FAILED = "failed"
    DISABLED = "disabled"
    """``SGL_DISABLED_ADAPTERS`` names it."""


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What became of one installed adapter.

    Args:
        name: the adapter.
        distribution: who brings it; ``version`` is that distribution's.
        state: how far it has come.
        error: why it failed, or None.
    """

    name: str
    distribution: str
    version: str
    state: AdapterState
    error: SglError | None = None


class PluginHost:
    """Loads adapters on demand and calls hooks.

    A plugin's import runs outside the lock, so it may take long or ask the host itself.

    Args:
        find: lists what is installed; a seam for tests.
        disabled: adapter names that are never loaded; None reads ``SGL_DISABLED_ADAPTERS``.
    """

    def __init__(
        self, *, find: Callable[[], Sequence[AdapterSource]] = installed_adapters, disabled: Collection[str] | None = None
    ) -> None:
        """Load nothing yet."""
        self._find = find
        self._disabled = Environment.read().disabled_adapters if disabled is None else frozenset(disabled)
        self._lock = threading.Lock()
        self._loaded = PluginSet({})
        self._failures: dict[str, SglError] = {}
        self._failed_observers: set[str] = set()
        self._is_all_loaded = False

    # ---- adapters ----------------------------------------------------------------------------------------------------
    def available(self) -> tuple[str, ...]:
        """Names of the adapters that are installed and not disabled, sorted. Imports none of them."""
        return tuple(sorted({source.name for source in self._find()} - self._disabled))

    def report(self) -> tuple[AdapterReport, ...]:
        """What became of every installed adapter so far, one entry per name and distribution. Imports none of them."""
        sources = self._find()
        return tuple(self._report_of(source, sources) for source in sources)

    def load(self, name: str) -> AdapterSpec:
        """Load an adapter, or find it loaded. One that failed before is tried again.

        Raises:
            AdapterNotFoundError: it is not installed, or disabled.
            DuplicateAdapterError: two distributions announce it.
            PluginError: it cannot be imported, or its hooks are wrong; the message names its distribution.
            MissingExtraError: its framework is not installed; the message is the install line.
        """
        loaded = self._loaded.plugins.get(name)
        if loaded is not None:
            return loaded.spec
        source = self._source(name)
        try:
            opened = open_plugin(source)
            with self._lock:
                self._loaded = self._loaded.with_plugin(opened)
                self._failures.pop(name, None)
        except SglError as error:
            with self._lock:
                self._failures[name] = error
            raise
        return self._loaded.plugins[name].spec

    def adapters(self) -> tuple[AdapterSpec, ...]:
        """Load every available adapter; the specs of those that work, sorted by name. ``report()`` has the others."""
        self._load_all()
        return tuple(loaded.spec for _, loaded in sorted(self._loaded.plugins.items()))

    # ---- hooks -------------------------------------------------------------------------------------------------------
    def translate(self, target: object, options: Mapping[str, object] | None = None) -> object | None:
        """A program for a foreign object from the first adapter that knows it, or None. Loads every available adapter."""
        self._load_all()
        program: object | None = self._loaded.hook.sgl_translate(target=target, options=_read_only(options))
        return program

    def lower(self, node: object, builder: object) -> object | None:
        """The lowering of a foreign node from the first adapter that knows it, or None. Loads every available adapter."""
        self._load_all()
        step: object | None = self._loaded.hook.sgl_lower(node=node, builder=builder)
        return step

    def create_backend(self, target: str, options: Mapping[str, object] | None = None) -> Backend | None:
        """A backend for a URL from the first adapter that owns its scheme, or None. Loads every available adapter.

        Raises:
            PluginHookError: what the adapter returned is no backend.
        """
        self._load_all()
        backend = self._loaded.hook.sgl_create_backend(target=target, options=_read_only(options))
        if backend is None:
            return None
        if isinstance(backend, type) or not isinstance(backend, Backend):
            kind = backend if isinstance(backend, type) else type(backend)
            raise PluginHookError(f"sgl_create_backend returned {kind.__module__}.{kind.__qualname__}, expected a Backend.")
        return backend

    @property
    def has_observers(self) -> bool:
        """Whether anybody would hear of ``request_finished``."""
        return bool(self._loaded.observers)

    def request_finished(self, record: RequestRecord) -> None:
        """Tell the observers of the adapters that are loaded. Never raises: an observer's first error is logged."""
        for name, observe in self._loaded.observers:
            try:
                observe(record=record)
            except Exception:
                with self._lock:
                    is_first = name not in self._failed_observers
                    self._failed_observers.add(name)
                if is_first:
                    _log.exception("the observer of adapter %r raised; its further errors are not logged", name)

    # ---- loading -----------------------------------------------------------------------------------------------------
    def _source(self, name: str) -> AdapterSource:
        """Who brings this adapter."""
        if not isinstance(name, str):
            raise InvalidArgumentError("name", name, "the name of an adapter, as str")
        if name in self._disabled:
            raise AdapterNotFoundError(f"adapter {name!r} is disabled by SGL_DISABLED_ADAPTERS; take it out to use it")
        sources = self._find()
        found = [source for source in sources if source.name == name]
        if not found:
            raise AdapterNotFoundError(_not_found(name, {source.name for source in sources} - self._disabled))
        if len(found) > 1:
            raise _duplicate(found)
        return found[0]

    def _load_all(self) -> None:
        """Load what is available, once; what fails is logged and kept for the report."""
        if self._is_all_loaded:
            return
        for name in self.available():
            if name in self._failures:
                continue
            try:
                self.load(name)
            except MissingExtraError:
                _log.debug("adapter %r is installed without its framework", name)
            except SglError as error:
                _log.warning("%s", error)
        self._is_all_loaded = True

    def _report_of(self, source: AdapterSource, sources: Sequence[AdapterSource]) -> AdapterReport:
        state, error = AdapterState.INSTALLED, self._failures.get(source.name)
        loaded = self._loaded.plugins.get(source.name)
        namesakes = [other for other in sources if other.name == source.name]
        if source.name in self._disabled:
            state, error = AdapterState.DISABLED, None
        elif loaded is not None and loaded.source == source:
            state, error = AdapterState.LOADED, None
        elif len(namesakes) > 1:
            state, error = AdapterState.FAILED, _duplicate(namesakes)
        elif error is not None:
            state = AdapterState.FAILED
        return AdapterReport(source.name, source.distribution, source.version, state, error)


class _ProcessHost:
    """The host of this process, made at its first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: PluginHost | None = None

    def get(self) -> PluginHost:
        with self._lock:
            if self._host is None:
                self._host = PluginHost()
            return self._host


_process = _ProcessHost()


def get_host() -> PluginHost:
    """The plugin host of this process, made at the first call."""
    return _process.get()


def _read_only(options: Mapping[str, object] | None) -> Mapping[str, object]:
    return MappingProxyType(dict(options or {}))


def _duplicate(sources: Sequence[AdapterSource]) -> DuplicateAdapterError:
    who = " and ".join(f"{source.distribution} {source.version}" for source in sources)
    return DuplicateAdapterError(
        f"adapter {sources[0].name!r} is announced by {who}, expected one of them; uninstall the other"
    )


def _not_found(name: str, known: Collection[str]) -> str:
    listed = f"expected one of {', '.join(sorted(known))}" if known else "no adapter is installed"
    near = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f". Did you mean {near[0]!r}?" if near else "; install the distribution that brings it"
    return f"adapter {name!r} is not installed, {listed}{hint}"

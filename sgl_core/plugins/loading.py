"""From an installed adapter to a checked plugin, and from checked plugins to hooks that can be called.

The host calls it. Nothing here has state: ``PluginSet`` is never changed, a larger one is built beside it, so a plugin that
fails on the way in leaves no trace.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pluggy

import sgl_core
from sgl_core.errors import MissingExtraError
from sgl_core.plugins import hookspecs
from sgl_core.plugins.discovery import AdapterSource
from sgl_core.plugins.errors import IncompatiblePluginError, MissingPluginExtraError, PluginHookError, PluginImportError
from sgl_core.plugins.hookspecs import API_VERSION, PROJECT, AdapterSpec

__all__ = ["HOOK_NAMES", "LoadedPlugin", "PluginSet", "check_plugin", "open_plugin"]

HOOK_NAMES: Final = ("sgl_adapter", "sgl_create_backend", "sgl_lower", "sgl_request_finished", "sgl_translate")
_OWN_DISTRIBUTION: Final = "sgl-core"


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that was imported and checked: where it came from, the module or object, what it says of itself."""

    source: AdapterSource
    plugin: object
    spec: AdapterSpec


def open_plugin(source: AdapterSource) -> LoadedPlugin:
    """Import a plugin and check it.

    Raises:
        PluginImportError: its import raised.
        MissingExtraError: its framework is not installed.
        PluginError: as ``check_plugin``.
    """
    try:
        plugin = source.load()
    except MissingExtraError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginImportError(f"{_named(source)} cannot be imported: {type(error).__name__}: {error}") from error
    loaded = check_plugin(source, plugin)
    _check_requirements(source, loaded.spec)
    return loaded


def check_plugin(source: AdapterSource, plugin: object) -> LoadedPlugin:
    """Check what a plugin says of itself and its hooks: its version first, because it explains the rest.

    Raises:
        IncompatiblePluginError: it was written for another ``API_VERSION``.
        PluginHookError: a hook is misspelt, unmarked or wrong, or the plugin does not say what it is.
    """
    spec = _read_spec(source, plugin)
    _check_version(source, spec)
    loaded = LoadedPlugin(source, plugin, spec)
    PluginSet({spec.name: loaded})
    _check_hook_names(source, plugin)
    return loaded


class PluginSet:
    """Plugins and the hooks to call on them. Immutable, so any thread may use one while another builds the next.

    Args:
        plugins: by adapter name. First-result hooks ask them in the order of their names, whichever was loaded first.

    Raises:
        PluginHookError: a plugin implements an unknown hook, or a known one with other arguments.
    """

    def __init__(self, plugins: Mapping[str, LoadedPlugin]) -> None:
        """Register and check all of them."""
        self.plugins: Final = MappingProxyType(dict(plugins))
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        for name in sorted(plugins, reverse=True):  # pluggy asks the last one first
            _register(manager, plugins[name])
        self.hook: Final = manager.hook
        observing = {found.plugin_name for found in manager.hook.sgl_request_finished.get_hookimpls()}
        self.observers: Final = tuple((name, self._observer(manager, name)) for name in sorted(observing))

    def with_plugin(self, loaded: LoadedPlugin) -> PluginSet:
        """A set with this plugin in it, too; this very set if it has one of that name already."""
        name = loaded.spec.name
        return self if name in self.plugins else PluginSet({**self.plugins, name: loaded})

    def _observer(self, manager: pluggy.PluginManager, name: str) -> Callable[..., object]:
        others = [loaded.plugin for other, loaded in self.plugins.items() if other != name]
        return manager.subset_hook_caller("sgl_request_finished", remove_plugins=others)


def _register(manager: pluggy.PluginManager, loaded: LoadedPlugin) -> None:
    try:
        manager.register(loaded.plugin, loaded.spec.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        _check_hook_names(loaded.source, loaded.plugin)
        reason = " ".join(str(error).split())
        raise PluginHookError(f"{_named(loaded.source)} has a hook that cannot be registered: {reason}") from error


def _read_spec(source: AdapterSource, plugin: object) -> AdapterSpec:
    attribute = _implementations(plugin).get("sgl_adapter")
    if attribute is None:
        _check_hook_names(source, plugin)
        raise PluginHookError(f"{_named(source)} has no sgl_adapter(), expected a @hookimpl that returns an AdapterSpec.")
    try:
        spec = getattr(plugin, attribute)()
    except Exception as error:
        raise PluginHookError(f"sgl_adapter() of {_named(source)} raised {type(error).__name__}: {error}") from error
    if not isinstance(spec, AdapterSpec):
        raise PluginHookError(f"sgl_adapter() of {_named(source)} returned {type(spec).__name__}, expected an AdapterSpec.")
    if spec.name != source.name:
        raise PluginHookError(
            f"{_named(source)} calls itself {spec.name!r}: AdapterSpec.name and the name of the entry point must be equal."
        )
    return spec


def _check_version(source: AdapterSource, spec: AdapterSpec) -> None:
    if spec.api_version != API_VERSION:
        older = source.distribution if spec.api_version < API_VERSION else _OWN_DISTRIBUTION
        raise IncompatiblePluginError(
            f"{_named(source)} was written for version {spec.api_version} of the plugin API, expected version {API_VERSION} "
            f"({_OWN_DISTRIBUTION} {sgl_core.__version__}). Upgrade {older}."
        )


def _check_requirements(source: AdapterSource, spec: AdapterSpec) -> None:
    for module in spec.requires:
        if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
            if source.distribution == _OWN_DISTRIBUTION:
                raise MissingExtraError(spec.extra, module)
            raise MissingPluginExtraError(source.distribution, spec.extra, module)


def _check_hook_names(source: AdapterSource, plugin: object) -> None:
    """Name the hook that nobody specified and the one that was meant, or the one that lacks its mark."""
    implementations = _implementations(plugin)
    for hook in implementations:
        if hook not in HOOK_NAMES:
            near = difflib.get_close_matches(hook, HOOK_NAMES, n=1, cutoff=0.0)[0]
            raise PluginHookError(
                f"{_named(source)} implements {hook!r}, expected one of {', '.join(HOOK_NAMES)}. Did you mean {near!r}?"
            )
    for hook in HOOK_NAMES:
        if hook not in implementations and callable(getattr(plugin, hook, None)):
            raise PluginHookError(f"{_named(source)} has a function {hook} without its mark; add @sgl_core.plugins.hookimpl.")


def _implementations(plugin: object) -> dict[str, str]:
    """The hooks that the plugin's marks promise: name of the hook -> name of the attribute."""
    manager = pluggy.PluginManager(PROJECT)
    promised = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            hook = options["specname"] or attribute
            if hook in HOOK_NAMES or not options["optionalhook"]:  # optional: for a core that has the hook already
                promised[hook] = attribute
    return promised


def _named(source: AdapterSource) -> str:
    return f"the plugin {source.name!r} of {source.distribution} {source.version}"

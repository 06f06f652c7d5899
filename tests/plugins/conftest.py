"""Builders of plugins and hosts, without a package that would have to be installed."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from sgl_core.plugins import AdapterSource, AdapterSpec, PluginHost, hookimpl


def make_plugin(name: str = "acme", *, marked: bool = True, api_version: int = 1, hooks: Any = None, **spec: Any) -> ModuleType:
    plugin = ModuleType(f"{name}_plugin")

    def sgl_adapter() -> AdapterSpec:
        return AdapterSpec(name, api_version, spec.get("create", dict), spec.get("requires", ()), spec.get("extra", ""))

    functions = {"sgl_adapter": sgl_adapter, **(hooks or {})}
    for hook, function in functions.items():
        setattr(plugin, hook, hookimpl(function) if marked or hook == "sgl_adapter" else function)
    return plugin


def make_source(
    plugin: object, name: str = "acme", distribution: str | None = None, load: Callable[[], object] | None = None
) -> AdapterSource:
    return AdapterSource(name, distribution or f"{name}-sgl", "1.0", load or (lambda: plugin))


def make_host(*sources: AdapterSource, disabled: tuple[str, ...] = ()) -> PluginHost:
    return PluginHost(find=lambda: sources, disabled=disabled)


@pytest.fixture
def plugin_of() -> Callable[..., ModuleType]:
    """``plugin_of(name, hooks={...}, requires=..., extra=...)`` -> a plugin module."""
    return make_plugin


@pytest.fixture
def source_of() -> Callable[..., AdapterSource]:
    """``source_of(plugin, name, distribution, load=...)`` -> the plugin as a distribution would announce it."""
    return make_source


@pytest.fixture
def host_of() -> Callable[..., PluginHost]:
    """``host_of(*sources, disabled=...)`` -> a host that finds these sources."""
    return make_host


@pytest.fixture
def broken_source() -> AdapterSource:
    """A source whose import raises."""

    def load() -> object:
        raise RuntimeError("the shop is on fire")

    return AdapterSource("broken", "broken-sgl", "0.3", load)

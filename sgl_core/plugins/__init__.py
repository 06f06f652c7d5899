"""The plugin host, and what a plugin imports: ``AdapterSpec`` and ``hookimpl``.

A distribution announces its plugin in the entry-point group ``sgl_core.adapters``::

    [project.entry-points."sgl_core.adapters"]
    acme = "acme_sgl.plugin"

and the plugin says what it is::

    from sgl_core.plugins import AdapterSpec, hookimpl

    @hookimpl
    def sgl_adapter():
        return AdapterSpec("acme", api_version=1, create=make_client, requires=("acme",), extra="client")

Our own adapters come in by the same door. Importing this package loads neither torch nor a framework nor any plugin.
"""

from sgl_core.plugins.discovery import AdapterSource, installed_adapters
from sgl_core.plugins.errors import (
    AdapterNotFoundError,
    DuplicateAdapterError,
    IncompatiblePluginError,
    MissingPluginExtraError,
    PluginError,
    PluginHookError,
    PluginImportError,
)
from sgl_core.plugins.hookspecs import API_VERSION, AdapterSpec, RequestRecord, hookimpl
from sgl_core.plugins.host import AdapterReport, AdapterState, PluginHost, get_host

__all__ = [
    "API_VERSION",
    "AdapterNotFoundError",
    "AdapterReport",
    "AdapterSource",
    "AdapterSpec",
    "AdapterState",
    "DuplicateAdapterError",
    "IncompatiblePluginError",
    "MissingPluginExtraError",
    "PluginError",
    "PluginHookError",
    "PluginHost",
    "PluginImportError",
    "RequestRecord",
    "get_host",
    "hookimpl",
    "installed_adapters",
]

"""What can go wrong with a plugin. Every message names the distribution that brought it, so that a user knows whom to ask.

::

    PluginError (RuntimeError)
    ├── AdapterNotFoundError (LookupError)     no installed distribution has it, or it is disabled
    ├── DuplicateAdapterError                  two distributions announce one name
    ├── IncompatiblePluginError                written for another ``API_VERSION``
    ├── PluginImportError (ImportError)        its module cannot be imported; the cause is chained
    └── PluginHookError (TypeError)            an unknown hook, wrong arguments, or a wrong return value

``MissingPluginExtraError`` stands below ``MissingExtraError``: it is about what is not installed, not about the plugin.
"""

from __future__ import annotations

from sgl_core.errors import MissingExtraError, SglError

__all__ = [
    "AdapterNotFoundError",
    "DuplicateAdapterError",
    "IncompatiblePluginError",
    "MissingPluginExtraError",
    "PluginError",
    "PluginHookError",
    "PluginImportError",
]


class PluginError(SglError, RuntimeError):
    """A plugin cannot be used; the others go on."""


class AdapterNotFoundError(PluginError, LookupError):
    """No adapter of this name is installed, or ``SGL_DISABLED_ADAPTERS`` names it."""


class DuplicateAdapterError(PluginError):
    """Two distributions announce one adapter name; neither is used, because which one wins would be chance."""


class IncompatiblePluginError(PluginError):
    """The plugin was written for another version of the hooks."""


class PluginImportError(PluginError, ImportError):
    """Importing the plugin raised; ``__cause__`` is what it raised."""


class PluginHookError(PluginError, TypeError):
    """A hook that does not exist, has other arguments, or returned something else than it must."""


class MissingPluginExtraError(MissingExtraError):
    """A missing extra of a foreign distribution: its own name stands in the install line.

    Args:
        distribution: whose extra it is.
        extra: its name; empty when the distribution's plain requirements bring the module.
        missing: the module that is not there.
    """

    def __init__(self, distribution: str, extra: str, missing: str) -> None:
        """Name the missing module and the install line."""
        super().__init__(extra, missing)
        self.distribution = distribution
        target = f"'{distribution}[{extra}]'" if extra else distribution
        self.msg = f"{missing} is not installed; run: pip install {target}"
        self.args = (self.msg,)

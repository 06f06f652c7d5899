"""A plugin with a hook that does not exist."""

from sgl_core.plugins import AdapterSpec, hookimpl


@hookimpl
def sgl_adapter():
    return AdapterSpec("misspelt", api_version=1, create=dict)


@hookimpl
def sgl_transalte(target):
    return target

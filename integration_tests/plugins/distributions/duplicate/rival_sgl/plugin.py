"""A good plugin under a name that is taken."""

from sgl_core.plugins import AdapterSpec, hookimpl


@hookimpl
def sgl_adapter():
    return AdapterSpec("acme", api_version=1, create=dict)

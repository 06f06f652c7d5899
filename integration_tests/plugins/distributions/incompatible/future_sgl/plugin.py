"""A plugin for a version of the API that is not this one; it has a hook of that version, too."""

from sgl_core.plugins import AdapterSpec, hookimpl


@hookimpl
def sgl_adapter():
    return AdapterSpec("future", api_version=9, create=dict)


@hookimpl
def sgl_read_minds(target):
    return target

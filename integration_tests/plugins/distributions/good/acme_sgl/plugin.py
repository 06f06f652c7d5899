"""The hooks of the adapter. Importing this module imports nothing of the framework."""

import sys

from sgl_core.plugins import AdapterSpec, hookimpl

finished = []


@hookimpl
def sgl_adapter():
    return AdapterSpec("acme", api_version=1, create=create)


def create(*steps):
    from acme_sgl.framework import Pipeline

    return Pipeline(steps)


@hookimpl
def sgl_translate(target):
    framework = sys.modules.get("acme_sgl.framework")
    if framework is None or not isinstance(target, framework.Pipeline):
        return None
    from acme_sgl.translate import program_of

    return program_of(target)


@hookimpl
def sgl_lower(node, builder):
    framework = sys.modules.get("acme_sgl.framework")
    if framework is None or not isinstance(node, framework.Blank):
        return None
    return builder(node.name)


@hookimpl
def sgl_create_backend(target, options):
    if not target.startswith("acme://"):
        return None
    from sgl_core.testing import FakeBackend

    return FakeBackend(**options)


@hookimpl
def sgl_request_finished(record):
    finished.append(record.request_id)

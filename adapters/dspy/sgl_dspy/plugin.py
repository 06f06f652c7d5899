"""The DSPy adapter as a plugin: what the host reads when it lists and loads adapters. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sgl_core.plugins import API_VERSION, AdapterSpec, hookimpl

__all__ = ["sgl_adapter", "sgl_lower", "sgl_translate"]


@hookimpl
def sgl_adapter() -> AdapterSpec:
    """``create`` makes an ``sgl_dspy.SglLM``."""
    return AdapterSpec("dspy", API_VERSION, _create, requires=("dspy",), extra="dspy")


@hookimpl
def sgl_translate(target: object, options: Mapping[str, object]) -> object | None:
    """A module of DSPy, compiled; ``options`` are those of ``compile_module``."""
    home = sys.modules.get("dspy.primitives.module")  # whoever holds a module has imported it; others are not made to
    if not isinstance(target, getattr(home, "Module", ())):
        return None
    from sgl_dspy.compiled.compiling import compile_module

    compiled: object = compile_module(target, **options)  # type: ignore[arg-type]  # checked by name there
    return compiled


@hookimpl(trylast=True)
def sgl_lower(node: object, builder: object) -> object | None:
    """The step of an output field of a type that we know; a plugin that knows better has been asked before."""
    fields = sys.modules.get("sgl_dspy.formats.fields")  # not imported: then neither of the two can be one of its objects
    if fields is None or not (isinstance(node, fields.ReplyField) and isinstance(builder, fields.FieldBuilder)):
        return None
    step: object | None = builder.own(node)
    return step


def _create(**options: Any) -> object:
    from sgl_dspy import SglLM

    return SglLM(**options)

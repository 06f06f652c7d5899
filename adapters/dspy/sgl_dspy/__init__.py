"""DSPy on sgl-core: the room is laid out, the adapter itself comes with a later version."""

from __future__ import annotations

from sgl_core.errors import NotYetAvailableError

__all__: list[str] = []


def __getattr__(name: str) -> object:
    """Say what is missing instead of an AttributeError for the names that the documents promise."""
    if name in {"BestOfN", "ChatAdapter", "JSONAdapter", "SglEngine", "SglLM", "compile_module"}:
        raise NotYetAvailableError(f"sgl_dspy.{name} is not available yet; use sgl_native until then")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

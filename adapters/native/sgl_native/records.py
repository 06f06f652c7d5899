"""What one finished run of a program cost and gave: plain values, read from its state and its backend.

The ``sgl`` command and the examples make records and ``sgl_native.report`` draws them; nothing here prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_core.language import ProgramState

__all__ = ["CallUsage", "RunRecord", "plain"]


@dataclass(frozen=True, slots=True)
class CallUsage:
    """Tokens of one ``gen`` or ``select``, or of several together.

    Args:
        name: the variable; ``name[i]`` for the i-th fork of a joined variable.
        prompt_tokens: length of its prompt.
        cached_tokens: prompt tokens that were computed before.
        generated_tokens: tokens sampled; 0 for a select.
        finish_reason: why it ended; None for several together.
    """

    name: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finish_reason: str | None

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens that had to be computed for this call."""
        return self.prompt_tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished run.

    Args:
        variables: value of every variable; a list per joined fork variable.
        text: the whole text of the program.
        messages: the same as role and content.
        meta: meta info of every variable that came from the model.
        stats: the engine's counters, or None when the backend keeps none.
        wall_s: seconds from start to end.
    """

    variables: Mapping[str, Any]
    text: str
    messages: Sequence[Mapping[str, Any]]
    meta: Mapping[str, Any]
    stats: Mapping[str, Any] | None
    wall_s: float

    @classmethod
    def of(cls, state: ProgramState, backend: object, wall_s: float) -> RunRecord:
        """Read a state that has finished, and the counters of ``backend`` if it has any.

        Raises:
            SglError: the program's own error, if it failed.
        """
        variables = state.variables()
        meta = {name: info for name in variables if (info := state.get_meta_info(name))}
        read_stats = getattr(backend, "stats", None)
        return cls(
            variables=variables,
            text=state.text(),
            messages=state.messages(),
            meta=meta,
            stats=plain(read_stats()) if callable(read_stats) else None,
            wall_s=wall_s,
        )

    def calls(self) -> list[CallUsage]:
        """Every call to the model, in the order of its variables."""
        return [_usage(name, info) for name, info in _flat(self.meta) if "prompt_tokens" in info]

    def totals(self) -> CallUsage:
        """All calls together: the engine's counts, which know programs called inside too, or else the sum over calls."""
        stats = self.stats
        calls = self.calls()

        def total(name: str) -> int:
            return int(stats[name]) if stats is not None else sum(getattr(call, name) for call in calls)

        counts = {name: total(name) for name in ("prompt_tokens", "cached_tokens", "generated_tokens")}
        return CallUsage("total", **counts, finish_reason=None)

    def same_result(self, other: RunRecord) -> bool:
        """Whether text and variables are equal."""
        return self.text == other.text and dict(self.variables) == dict(other.variables)

    def as_json(self) -> dict[str, Any]:
        """The document of ``sgl run --json``."""
        return {
            "variables": plain(self.variables),
            "text": self.text,
            "messages": plain(self.messages),
            "meta": plain(self.meta),
            "stats": self.stats,
        }


def plain(value: Any) -> Any:
    """Copy a value into what JSON can hold; a value of a foreign type becomes its ``repr``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    return repr(value)


def _flat(meta: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for name, info in meta.items():
        if isinstance(info, Mapping):
            rows.append((name, info))
        else:
            rows.extend((f"{name}[{index}]", item) for index, item in enumerate(info) if isinstance(item, Mapping))
    return rows


def _usage(name: str, info: Mapping[str, Any]) -> CallUsage:
    reason = info.get("finish_reason")
    return CallUsage(
        name=name,
        prompt_tokens=info["prompt_tokens"],
        cached_tokens=info["cached_tokens"],
        generated_tokens=info.get("completion_tokens", 0),
        finish_reason=None if reason is None else str(reason),
    )

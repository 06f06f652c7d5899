"""Draws run records on a terminal with rich: values, tokens per call, and two runs side by side.

Used by ``sgl run`` and by the examples. Needs rich, which comes with ``sgl-core[runtime]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sgl_native.printable import without_controls
from sgl_native.records import CallUsage, RunRecord

__all__ = ["calls_table", "comparison_table", "print_comparison", "print_record", "stats_line", "variables_table"]


def print_record(record: RunRecord, console: Console | None = None) -> None:
    """Print the values, the calls and the sum of one run."""
    _print(console, variables_table(record.variables), calls_table(record), stats_line(record))


def print_comparison(cached: RunRecord, uncached: RunRecord, console: Console | None = None) -> None:
    """Print what one program gave, and what it cost with and without the prefix cache."""
    same = "equal" if cached.same_result(uncached) else "DIFFERENT"
    computed, computed_without = (run.totals().prefilled_tokens for run in (cached, uncached))
    _print(
        console,
        variables_table(cached.variables),
        comparison_table(cached, uncached),
        f"prompt tokens computed: {computed:,} with the cache, {computed_without:,} without: "
        f"ratio {computed / max(computed_without, 1):.3f}",
        f"wall time: {cached.wall_s:.1f} s with the cache, {uncached.wall_s:.1f} s without: "
        f"{uncached.wall_s / max(cached.wall_s, 1e-9):.2f} times as fast",
        f"texts and values of the two runs: {same}",
    )


def variables_table(variables: Mapping[str, Any]) -> Table:
    """A row for every variable; a list gets a row for every entry."""
    table = Table(title="Values", title_justify="left", show_lines=True)
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in variables.items():
        if isinstance(value, list):
            for index, entry in enumerate(value):
                table.add_row(_plain(f"{name}[{index}]"), _shown(entry))
        else:
            table.add_row(_plain(name), _shown(value))
    return table


def calls_table(record: RunRecord) -> Table:
    """Tokens of every call of one run, and why it ended."""
    table = Table(title="Calls to the model (tokens)", title_justify="left")
    table.add_column("variable", no_wrap=True)
    for column in ("prompt", "cached", "new", "generated"):
        table.add_column(column, justify="right")
    table.add_column("finish")
    for call in record.calls():
        table.add_row(_plain(call.name), *_counts(call), f"{call.generated_tokens:,}", call.finish_reason or "")
    return table


def comparison_table(cached: RunRecord, uncached: RunRecord) -> Table:
    """Tokens of every call, with the prefix cache and without; a call that one run lacks is left blank there."""
    table = Table(title="Prompt tokens of every call, with the prefix cache on and off", title_justify="left")
    table.add_column("variable", no_wrap=True)
    for cache in ("on", "off"):
        for column in ("prompt", "cached", "new"):
            table.add_column(f"{column}\n({cache})", justify="right")
    left = {call.name: call for call in cached.calls()}
    right = {call.name: call for call in uncached.calls()}
    for name in dict.fromkeys([*left, *right]):
        table.add_row(_plain(name), *_counts(left.get(name)), *_counts(right.get(name)))
    return table


def stats_line(record: RunRecord) -> str:
    """The run in one line: what its prompts held, what was computed, how long it took."""
    totals = record.totals()
    share = totals.cached_tokens / totals.prompt_tokens if totals.prompt_tokens else 0.0
    return (
        f"{totals.prompt_tokens:,} prompt tokens in all: {totals.cached_tokens:,} cached ({share:.0%}), "
        f"{totals.prefilled_tokens:,} computed; {totals.generated_tokens:,} generated; {record.wall_s:.1f} s"
    )


def _counts(call: CallUsage | None) -> tuple[str, str, str]:
    if call is None:
        return "", "", ""
    return f"{call.prompt_tokens:,}", f"{call.cached_tokens:,}", f"{call.prefilled_tokens:,}"


def _shown(value: object) -> Text:
    return _plain(value.strip() if isinstance(value, str) else repr(value))


def _plain(text: str) -> Text:
    """Text as it is: a model may write what looks like markup, or commands to a terminal."""
    return Text(without_controls(text))


def _print(console: Console | None, *parts: RenderableType) -> None:
    console = console or Console()
    for part in parts:
        console.print(part, highlight=False)

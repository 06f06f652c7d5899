"""Tables and the picture of the LangChain benchmark, drawn from the content of its JSON alone; in the colours of ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_tables", "write_picture"]

_OURS, _COMPILED, _CACHE_OFF, _THEIRS, _BAR = "#009E73", "#0072B2", "#56B4E9", "#999999", "#D55E00"
_BASELINE = "ChatHuggingFace"
_COLOURS = {_BASELINE: _THEIRS, "sgl-core, cache off": _CACHE_OFF, "sgl-core": _OURS, "sgl-core, compiled": _COMPILED}
"""In the order in which they are drawn."""


# ---- tables ---------------------------------------------------------------------------------------------------------------
def print_tables(content: dict[str, Any], console: Console) -> None:
    """Times, tokens, answers, processor time, and the bars."""
    programs = content["programs"]
    console.print("\n".join(f"{key}: {result['title']}" for key, result in programs.items()), highlight=False)
    console.print(_times_table(programs))
    console.print(_tokens_table(programs))
    console.print(_answers_table(programs))
    if "overhead" in content:
        console.print(_overhead_table(content["overhead"]))
    console.print(_bars_table(content["bars"]))


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """With so many columns on the left aligned to the left, and figures in the others."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def _times_table(programs: dict[str, Any]) -> Table:
    columns = ("program", "system", "rounds", "median s", "min .. max s", "times as fast", "others' CPU")
    table = _table("Wall time", *columns, left=2)
    for key, result in programs.items():
        for index, (name, run) in enumerate(result["systems"].items()):
            ratio = result["times_as_fast"].get(name)
            table.add_row(
                "" if index else key,
                name,
                str(run["rounds"]),
                f"{run['median_s']:.2f}",
                f"{run['min_s']:.2f} .. {run['max_s']:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{max(run['others_cpu_share']):.0%}",
                end_section=index == len(result["systems"]) - 1,
            )
    return table


def _tokens_table(programs: dict[str, Any]) -> Table:
    columns = ("program", "system", "prompt", "computed", "optimum", "ratio, worst", "cache_read", "ideal", "share, worst")
    table = _table("Prompt tokens, from an empty cache", *columns, "generated", "at once", left=2)
    for key, result in programs.items():
        counted = {name: run for name, run in result["systems"].items() if "over_optimum" in run}
        for index, (name, run) in enumerate(counted.items()):
            share = run["cache_read_of_ideal"]
            table.add_row(
                "" if index else key,
                name,
                f"{run['prompt_tokens']:,}",
                f"{run['computed_tokens']:,}",
                f"{run['optimal_prefill_tokens']:,}",
                f"{run['over_optimum']:.3f}",
                f"{run['cache_read']:,}",
                f"{run['ideal_cache_read']:,}",
                "" if share is None else f"{share:.3f}",
                f"{run['generated_tokens']:,}",
                str(run["most_at_once"]),
                end_section=index == len(counted) - 1,
            )
    return table


def _answers_table(programs: dict[str, Any]) -> Table:
    columns = ("program", "system", "calls", "comparable", "identical", "margins where they part")
    table = _table("Answers against ours, of the calls with the same prompt", *columns, left=2)
    for key, result in programs.items():
        for index, (name, same) in enumerate(result["agreement"].items()):
            counts = (str(same[column]) for column in ("calls", "comparable", "identical"))
            margins = ", ".join("none" if margin is None else f"{margin:.1e}" for margin in same["margins"])
            table.add_row("" if index else key, name, *counts, margins, end_section=index == len(result["agreement"]) - 1)
    return table


def _overhead_table(overhead: dict[str, Any]) -> Table:
    title = "Processor time of a call without a model, milliseconds"
    table = _table(title, "", "way", "median", "quartiles", "added to plain", "times", left=2)
    titles = {"invoke": "invoke", "batch": f"one of a batch of {overhead['batch_size']}"}
    for kind, told in titles.items():
        ways = overhead[kind]["ways"]
        for index, (name, way) in enumerate(ways.items()):
            table.add_row(
                "" if index else told,
                name,
                f"{way['cpu_ms']:.3f}",
                f"{way['lower_ms']:.3f} .. {way['upper_ms']:.3f}",
                f"{way['added_ms']:+.3f}" if index else "",
                str(overhead[kind]["rounds"]),
                end_section=index == len(ways) - 1,
            )
    return table


def _bars_table(bars: list[dict[str, Any]]) -> Table:
    table = _table("Bars", "bar", "value", "asked", "")
    for entry in bars:
        table.add_row(entry["name"], f"{entry['value']:.3f}", entry["bar"], "passed" if entry["passed"] else "MISSED")
    return table


# ---- picture --------------------------------------------------------------------------------------------------------------
def write_picture(content: dict[str, Any], path: Path) -> None:
    """A group of bars for each program, a bar a system: seconds, with the ratio to ``ChatHuggingFace`` where it was run."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sgl", "font.size": 9.5, "axes.titlesize": 10, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    programs = content["programs"]
    figure, panels = plt.subplots(
        len(programs), 1, figsize=(8.4, 1.12 * len(programs) + 0.7), layout="constrained", squeeze=False
    )
    for axes, (key, result) in zip(panels[:, 0], programs.items(), strict=True):
        _draw_program(axes, key, result, content["bars"])
    note = "seconds of a round, a scale for each program; less is better. In brackets: times as fast as ChatHuggingFace"
    figure.supxlabel(note, fontsize=9.5)
    figure.suptitle(f"LangChain programs, {content['dtype']}, {content['machine']['threads']} threads", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_program(axes: Any, key: str, result: dict[str, Any], bars: list[dict[str, Any]]) -> None:
    order = [name for name in _COLOURS if name in result["systems"]]
    seconds = {name: result["systems"][name]["median_s"] for name in order}
    drawn = axes.barh(order, list(seconds.values()), color=[_COLOURS[name] for name in order], height=0.78)
    ratios = result["times_as_fast"]
    axes.bar_label(drawn, [_label(seconds[name], ratios.get(name) if name != _BASELINE else None) for name in order])
    limit = next(
        (float(bar["bar"].split()[-1]) for bar in bars if bar["name"].startswith(f"{key}:") and "as fast" in bar["name"]), 0
    )
    if limit:
        axes.axvline(seconds[_BASELINE] / limit, color=_BAR, linewidth=1.4, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(seconds.values()))
    axes.set_title(result["title"] + (f"; dashed: {limit:g} times as fast" if limit else ""), loc="left")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)


def _label(seconds: float, ratio: float | None) -> str:
    return f" {seconds:.1f} s" + ("" if ratio is None else f"  ({ratio:.1f}x)")

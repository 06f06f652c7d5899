"""Tables and the picture of the DSPy benchmark, drawn from the content of its JSON alone; in the colours of ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_tables", "write_picture"]

_OURS, _FIELDS, _COMPILED, _CACHE_OFF, _THEIRS, _BAR = "#009E73", "#E69F00", "#0072B2", "#56B4E9", "#999999", "#D55E00"
_COLOURS = {
    "sgl-core": _OURS,
    "sgl-core, ChatAdapter": _FIELDS,
    "sgl-core, compiled": _COMPILED,
    "sgl-core, cache off": _CACHE_OFF,
}
"""Every other system is grey."""
_REFERENCE = "llama.cpp"


# ---- tables ---------------------------------------------------------------------------------------------------------------
def print_tables(content: dict[str, Any], console: Console) -> None:
    """Peers, times, tokens, answers, and the bars."""
    programs = content["programs"]
    console.print("\n".join(f"{key}: {result['title']}" for key, result in programs.items()), highlight=False)
    for name, peer in content["peers"].items():
        told = f"not run: {peer['not_run']}" if "not_run" in peer else peer["told"]
        console.print(f"{name}: {told}", highlight=False, markup=False)
    console.print(_times_table(programs, content["peers"]))
    console.print(_tokens_table(programs))
    console.print(_answers_table(programs))
    console.print(_bars_table(content["bars"]))


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """With so many columns on the left aligned to the left, and figures in the others."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def _times_table(programs: dict[str, Any], peers: dict[str, Any]) -> Table:
    columns = ("program", "system", "rounds", "median s", "min .. max s", "times ours", "others' CPU")
    table = _table("Wall time", *columns, left=2)
    missing = [name for name, peer in peers.items() if "not_run" in peer]
    for key, result in programs.items():
        for index, (name, run) in enumerate(result["systems"].items()):
            table.add_row(
                "" if index else key,
                name,
                str(run["rounds"]),
                f"{run['median_s']:.2f}",
                f"{run['min_s']:.2f} .. {run['max_s']:.2f}",
                f"{run['times_ours']:.2f}",
                f"{max(run['others_cpu_share']):.0%}" if "engine" in run else "",  # a server's work is not ours
                end_section=index == len(result["systems"]) - 1 and not missing,
            )
        for index, name in enumerate(missing):
            table.add_row("", name, "", "not run", "", "", "", end_section=index == len(missing) - 1)
    return table


def _tokens_table(programs: dict[str, Any]) -> Table:
    columns = ("program", "system", "calls", "prompt", "cached", "share", "generated", "computed", "optimum", "ratio")
    title = "Tokens as DSPy was told them, from an empty cache; prompt tokens computed, over the fewest possible"
    table = _table(title, *columns, left=2)
    for key, result in programs.items():
        for index, (name, run) in enumerate(result["systems"].items()):
            engine = run.get("engine", {})
            table.add_row(
                "" if index else key,
                name,
                str(run["lm_calls"]),
                f"{run['prompt_tokens']:,}",
                f"{run['cached_tokens']:,}",
                f"{run['cached_tokens'] / run['prompt_tokens']:.1%}",
                f"{run['completion_tokens']:,}",
                *([f"{engine['computed_tokens']:,}", f"{engine['optimal_prefill_tokens']:,}"] if engine else ["", ""]),
                f"{engine['over_optimum']:.3f}" if engine else "",
                end_section=index == len(result["systems"]) - 1,
            )
    return table


def _answers_table(programs: dict[str, Any]) -> Table:
    columns = ("program", "system", "calls", "asked alike", "answered alike", "same ids")
    table = _table("Prompts and answers against ours", *columns, left=2)
    for key, result in programs.items():
        for index, (name, same) in enumerate(result["agreement"].items()):
            identical = "" if same["identical"] is None else str(same["identical"])
            ids = {True: "yes", False: "NO", None: ""}[result["same_ids"].get(name)]
            last = index == len(result["agreement"]) - 1
            row = ("" if index else key, name, str(same["calls"]), str(same["comparable"]), identical, ids)
            table.add_row(*row, end_section=last)
    return table


def _bars_table(bars: list[dict[str, Any]]) -> Table:
    table = _table("Bars", "bar", "value", "asked", "")
    for entry in bars:
        table.add_row(entry["name"], f"{entry['value']:.3f}", entry["bar"], "passed" if entry["passed"] else "MISSED")
    return table


# ---- picture --------------------------------------------------------------------------------------------------------------
def write_picture(content: dict[str, Any], path: Path) -> None:
    """A group of bars for each program, a bar a system: seconds, and how many times ours that is."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sgl", "font.size": 9.5, "axes.titlesize": 10, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    programs = content["programs"]
    heights = [len(result["systems"]) for result in programs.values()]
    figure, panels = plt.subplots(
        len(programs),
        1,
        figsize=(8.4, 0.24 * sum(heights) + 0.5 * len(heights) + 0.8),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, (key, result) in zip(panels[:, 0], programs.items(), strict=True):
        _draw_program(axes, key, result, content["bars"])
    figure.supxlabel("seconds of a round, a scale for each program; less is better. In brackets: times sgl-core", fontsize=9.5)
    figure.suptitle(f"DSPy programs, {content['machine']['threads']} threads", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_program(axes: Any, key: str, result: dict[str, Any], bars: list[dict[str, Any]]) -> None:
    systems = result["systems"]
    ours = [name for name in _COLOURS if name in systems]
    order = [*ours, *(name for name in systems if name not in _COLOURS)]
    seconds = [systems[name]["median_s"] for name in order]
    drawn = axes.barh(order, seconds, color=[_COLOURS.get(name, _THEIRS) for name in order], height=0.78)
    axes.bar_label(drawn, [f" {systems[name]['median_s']:.1f} s  ({systems[name]['times_ours']:.1f}x)" for name in order])
    limit = next((float(bar["bar"].split()[-1]) for bar in bars if bar["name"].startswith(f"{key}: times as fast")), 0.0)
    if limit:
        axes.axvline(systems[_REFERENCE]["median_s"] / limit, color=_BAR, linewidth=1.4, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(seconds))
    axes.set_title(result["title"] + (f"; dashed: {limit:g}x {_REFERENCE}" if limit else ""), loc="left")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)

"""Tables and pictures of the engine's benchmark, drawn from the content of its JSON alone.

Colours are those of Okabe and Ito, which people of all kinds of colour vision can tell apart; ours is always the same green.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_tables", "write_pictures"]

_OURS, _THEIRS, _BAR, _SECOND = "#009E73", "#999999", "#D55E00", "#0072B2"


# ---- tables ---------------------------------------------------------------------------------------------------------------
def print_tables(content: dict[str, Any], console: Console) -> None:
    """Speed, ablations, small pools, and the bars."""
    workloads = content["workloads"]
    console.print("\n".join(f"{key}  {result['title']}" for key, result in workloads.items()), highlight=False)
    console.print(_speed_table(workloads))
    if any(result.get("timed") for result in workloads.values()):
        console.print(_timed_table(workloads))
    console.print(_counted_table(workloads))
    console.print(_pools_table(workloads))
    console.print(_bars_table(content["bars"]))
    console.print(_judged_for(content), highlight=False)


def _speed_table(workloads: dict[str, Any]) -> Table:
    table = Table(title="Wall time, and prompt tokens computed (ours: in the worst round) against the fewest possible")
    for column in (
        "workload",
        "system",
        "rounds",
        "median s",
        "min .. max s",
        "times ours",
        "others' CPU",
        "computed",
        "optimum",
        "ratio",
    ):
        table.add_column(column, justify="left" if column in ("workload", "system") else "right")
    for key, result in workloads.items():
        for index, run in enumerate(result["systems"]):
            computed = run["prefilled_tokens"] if index else result["computed_tokens"]
            optimum = result["optimal_prefill_tokens"]
            table.add_row(
                key if not index else "",
                run["name"],
                str(run["rounds"]),
                f"{run['median_s']:.2f}",
                f"{run['min_s']:.2f} .. {run['max_s']:.2f}",
                f"{run['median_s'] / result['systems'][0]['median_s']:.2f}",
                f"{max(run['others_cpu_share']):.0%}",
                f"{computed:,}",
                f"{optimum:,}",
                f"{computed / optimum:.3f}",
                end_section=index == len(result["systems"]) - 1,
            )
    return table


def _timed_groups(workloads: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Key and group, in the order of the report."""
    return [(key, group) for key, result in workloads.items() for group in result.get("timed", [])]


def _timed_table(workloads: dict[str, Any]) -> Table:
    table = Table(title="Ablations, timed on a part of each workload")
    columns = (
        "workload",
        "calls",
        "slots",
        "variant",
        "rounds",
        "s",
        "times full",
        "computed",
        "optimum",
        "ratio",
        "hit rate",
        "same outputs",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("workload", "variant") else "right")
    for key, group in _timed_groups(workloads):
        rows = group["variants"]
        for index, row in enumerate(rows):
            slots = "" if group["pool_tokens"] is None else f"{group['pool_tokens']:,}"
            table.add_row(
                *((key, str(group["calls"]), slots) if not index else ("", "", "")),
                row["name"],
                str(row["rounds"]),
                f"{row['median_s']:.2f}",
                f"{row['times_full']:.2f}",
                f"{row['prefilled_tokens'] + row['recomputed_tokens']:,}",
                f"{row['optimal_prefill_tokens']:,}",
                f"{row['over_optimum']:.2f}",
                f"{row['hit_rate']:.1%}",
                f"{row['identical_to_full']:.0%}",
                end_section=index == len(rows) - 1,
            )
    return table


def _counted_table(workloads: dict[str, Any]) -> Table:
    """Prompt tokens computed over the optimum: a row a variant, two columns a workload."""
    table = Table(title="Ablations, counted: prompt tokens computed over the optimum, pool whole | a quarter")
    table.add_column("variant")
    names: list[str] = []
    for key, result in workloads.items():
        table.add_column(key, justify="right")
        names = [row["name"] for row in result["counted"] if row["pool"] == "whole"]
    for name in names:
        cells = []
        for result in workloads.values():
            ratio = {row["pool"]: row["over_optimum"] for row in result["counted"] if row["name"] == name}
            cells.append(f"{ratio['whole']:.2f} | {ratio['quarter']:.2f}")
        table.add_row(name, *cells)
    return table


def _pools_table(workloads: dict[str, Any]) -> Table:
    table = Table(title="Hit rates in a pool of a quarter (replayed)")
    for column in ("workload", "slots", "run at once", "ours", "FCFS", "LRU in order", "Belady in order", "optimum"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for result in workloads.values():
        for row in result["small_pools"]:
            rates = [row["hit_rate"][name] for name in ("ours", "fcfs", "lru_in_order", "belady_in_order", "optimum")]
            at_once = "as fit" if row["max_running"] is None else str(row["max_running"])
            table.add_row(row["name"], f"{row['pool_tokens']:,}", at_once, *(f"{rate:.1%}" for rate in rates))
    return table


def _bars_table(bars: list[dict[str, Any]]) -> Table:
    table = Table("bar", "expected", "reached", "", title="Bars")
    for bar in bars:
        verdict = "[green]pass[/]" if bar["passed"] else "[bold red]FAIL[/]"
        table.add_row(bar["name"], bar["bar"], f"{bar['value']:.4f}", verdict)
    return table


def _judged_for(content: dict[str, Any]) -> str:
    dtype, fair = content["dtype"], "bfloat16" if content["machine"]["bfloat16"] == "native" else "float32"
    reason = "has bfloat16" if fair == "bfloat16" else "emulates bfloat16"
    return (
        f"Speed bars judged here: {dtype} against {dtype}. They are stated for bfloat16 on a processor that has it; this one "
        f"{reason}, so {fair} is the fair comparison. Both are reported, by a run each (--dtype)."
    )


# ---- pictures -------------------------------------------------------------------------------------------------------------
def write_pictures(content: dict[str, Any], folder: Path) -> None:
    """As far as there is something to show: ``<name>.svg``, ``<name>_ablations.svg`` and ``<name>_tokens.svg``."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sgl", "font.size": 9.5, "axes.titlesize": 10, "svg.fonttype": "path"})
    stem = content["name"]
    workloads = content["workloads"]
    if any(result["times_ours"] for result in workloads.values()):
        _draw_ratios(content, folder / f"{stem}.svg")
    if any(result.get("timed") for result in workloads.values()):
        _draw_timed(workloads, folder / f"{stem}_ablations.svg")
    _draw_counted(workloads, folder / f"{stem}_tokens.svg")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bare(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)


def _draw_ratios(content: dict[str, Any], path: Path) -> None:
    """One bar a workload: how many times faster than the baseline, with the bar to reach as a mark."""
    from matplotlib import pyplot as plt

    results = [(key, result) for key, result in content["workloads"].items() if result["times_ours"]]
    ratios = [next(iter(result["times_ours"].values())) for _, result in results]
    figure, axes = plt.subplots(figsize=(8.4, 0.55 * len(results) + 1.5), layout="constrained")
    drawn = axes.barh([f"{key}  {result['title']}" for key, result in results], ratios, height=0.62, color=_OURS)
    seconds = [f"{r['systems'][0]['median_s']:.1f} s against {r['systems'][1]['median_s']:.1f} s" for _, r in results]
    axes.bar_label(drawn, [f" {ratio:.1f}x   {text}" for ratio, text in zip(ratios, seconds, strict=True)])
    axes.axvline(1.0, color=_THEIRS, linewidth=1.2, linestyle="--")
    limits = {bar["name"]: float(bar["bar"].split()[-1]) for bar in content["bars"] if "times faster" in bar["name"]}
    for row, (key, _) in enumerate(results):
        limit = next((value for name, value in limits.items() if name.startswith(key)), None)
        if limit is not None:
            axes.plot([limit, limit], [row - 0.4, row + 0.4], color=_BAR, linewidth=2, solid_capstyle="butt")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.75 * max(ratios))
    axes.set_xlabel("times faster than transformers.generate; dashed: equal" + ("; orange: bar" if limits else ""))
    axes.set_title(f"sgl-core against transformers.generate, {content['dtype']}", loc="left")
    _bare(axes)
    _save(figure, path)


def _draw_timed(workloads: dict[str, Any], path: Path) -> None:
    """A panel a workload: seconds of the full engine and of each variant."""
    from matplotlib import pyplot as plt

    results = _timed_groups(workloads)
    heights = [len(group["variants"]) for _, group in results]
    figure, panels = plt.subplots(
        len(results),
        1,
        figsize=(7.6, 0.32 * sum(heights) + 0.75 * len(results) + 0.5),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, (key, group) in zip(panels[:, 0], results, strict=True):
        rows = group["variants"]
        seconds = [row["median_s"] for row in rows]
        drawn = axes.barh([row["name"] for row in rows], seconds, color=[_OURS] + [_THEIRS] * (len(rows) - 1), height=0.66)
        axes.bar_label(drawn, [f" {row['median_s']:.1f} s   {row['times_full']:.1f}x" for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(seconds))
        axes.set_title(f"{key}  {group['title']}", loc="left")
        _bare(axes)
    panels[-1, 0].set_xlabel("seconds; less is better")
    _save(figure, path)


def _draw_counted(workloads: dict[str, Any], path: Path) -> None:
    """A panel a workload: tokens computed over the optimum for every variant, in a whole pool and in a quarter."""
    from matplotlib import pyplot as plt

    columns = min(3, len(workloads))
    lines = -(-len(workloads) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(3.6 * columns + 1.2, 2.3 * lines + 0.9),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    largest = max(row["over_optimum"] for result in workloads.values() for row in result["counted"])
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick <= 1.2 * largest]
    styles = (
        ("whole", {"color": _OURS, "marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2}),
        ("quarter", {"color": _SECOND, "marker": "D", "markersize": 4.5}),
    )
    for axes, (key, result) in zip(panels.flat, workloads.items(), strict=False):
        axes.axvline(1.0, color=_THEIRS, linewidth=1.2, linestyle="--", zorder=0)
        for pool, style in styles:
            rows = [row for row in result["counted"] if row["pool"] == pool]
            ratios, names = [row["over_optimum"] for row in rows], [row["name"] for row in rows]
            axes.plot(ratios, names, linestyle="none", label=f"{pool} pool", **style)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.85, 1.25 * max(2, largest))
        axes.set_title(f"{key}  {result['title'].partition(':')[0]}", loc="left")
        _bare(axes)
    for axes in panels.flat[len(workloads) :]:
        axes.set_visible(False)
    panels[0, 0].invert_yaxis()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.supxlabel("prompt tokens computed, over the fewest possible (log scale; dashed: optimum)", fontsize=9.5)
    _save(figure, path)

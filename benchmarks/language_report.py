"""Tables and the picture of the language's benchmark, drawn from the content of its JSON alone; in the colours of ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_tables", "write_picture"]

_OURS, _OTHERS, _BAR = "#009E73", "#999999", "#D55E00"


def print_tables(content: dict[str, Any], console: Console) -> None:
    """Live forks, batches, compiling."""
    console.print(_forks_table(content["forks"]))
    console.print(_batches_table(content["batches"]))
    console.print(_compiling_table(content["compiling"]))


def _forks_table(forks: dict[str, Any]) -> Table:
    kinds = {name: forks[name] for name in ("text", "generation")}
    table = Table("microseconds a fork", *kinds, title=f"{forks['forks']:,} live forks, medians")
    for part in kinds["generation"]["microseconds"]:
        cells = (kind["microseconds"].get(part) for kind in kinds.values())
        table.add_row(part, *("" if cell is None else f"{cell:.1f}" for cell in cells))
    table.add_section()
    table.add_row("bytes a fork", *(f"{kind['bytes']:,.0f}" for kind in kinds.values()))
    table.add_row("threads in all", *(str(kind["threads"]) for kind in kinds.values()))
    table.add_row("others' CPU, most", *(f"{max(kind['others_cpu_share']):.0%}" for kind in kinds.values()))
    return table


def _batches_table(batch: dict[str, Any]) -> Table:
    title = f"{batch['programs']:,} programs, {batch['requests']:,} requests"
    table = Table(
        "latency", "system", "median s", "min .. max s", "times as fast", "CPU s", "others' CPU", "threads", title=title
    )
    for row in batch["latencies"]:
        for index, run in enumerate(row["systems"]):
            name = run["name"]
            table.add_row(
                "" if index else f"{1e3 * row['latency_s']:g} ms",
                name,
                f"{run['median_s']:.2f}",
                f"{run['min_s']:.2f} .. {run['max_s']:.2f}",
                f"{row['times_as_fast_as_interpreted'][name]:.2f}",
                f"{run['cpu_s']:.2f}",
                f"{max(run['others_cpu_share']):.0%}",
                str(batch["threads"].get(name, "")),
                end_section=index == len(row["systems"]) - 1,
            )
    return table


def _compiling_table(programs: dict[str, Any]) -> Table:
    table = Table("program", "nodes", "trace ms", "compile ms", "compile us a node", title="Tracing and compiling, medians")
    for name, told in programs.items():
        trace_s, compile_s = told["trace"]["median_s"], told["compile"]["median_s"]
        table.add_row(
            name,
            f"{told['nodes']:,}",
            f"{1e3 * trace_s:.1f}",
            f"{1e3 * compile_s:.1f}",
            f"{1e6 * compile_s / told['nodes']:.0f}",
        )
    return table


def write_picture(content: dict[str, Any], path: Path) -> None:
    """Three panels: microseconds and bytes of a fork with their bars, and seconds of the batches."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sgl", "font.size": 9.5, "axes.titlesize": 10, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(3, 1, figsize=(7.2, 6.2), layout="constrained", height_ratios=(2, 2, 6))
    kinds = {f"with {name}": content["forks"][name] for name in ("text", "generation")}
    microseconds = {name: kind["microseconds"]["fork + join"] for name, kind in kinds.items()}
    _draw_bars(panels[0], microseconds, "fork + join, microseconds each", "{:.1f}", limit=content["limits"]["microseconds"])
    num_bytes = {name: kind["bytes"] for name, kind in kinds.items()}
    _draw_bars(panels[1], num_bytes, "a live fork, bytes", "{:,.0f}", limit=content["limits"]["bytes"])
    seconds = {
        f"{run['name']}, {1e3 * row['latency_s']:g} ms": run["median_s"]
        for row in content["batches"]["latencies"]
        for run in row["systems"]
    }
    title = f"{content['batches']['programs']:,} programs, seconds, by latency of the backend"
    _draw_bars(panels[2], seconds, title, "{:.2f}")
    panels[-1].set_xlabel("less is better; dashed: the bar")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_bars(axes: Any, values: dict[str, float], title: str, form: str, *, limit: float | None = None) -> None:
    colours = [_OTHERS if name.startswith(("interpreted", "backend")) else _OURS for name in values]
    drawn = axes.barh(list(values), list(values.values()), color=colours, height=0.66)
    axes.bar_label(drawn, [" " + form.format(value) for value in values.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(*values.values(), limit or 0.0))
    if limit is not None:
        axes.axvline(limit, color=_BAR, linestyle="--", linewidth=1.2)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)

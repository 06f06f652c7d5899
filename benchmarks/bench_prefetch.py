"""Claim: a prefix that is known early is there when its turn comes; and what that costs those who run meanwhile.

Program A is a conversation of several turns. Program B begins with a constant prefix of 2,000 tokens and is called when A's
last turn but one has ended. In one variant ``b.prefetch()`` is called when A starts; in the
other it is not. Beside B's time to its first token stand A's times between tokens, which show what the prefetch costs A.
The variants alternate, every round begins with an empty cache, and all texts must be equal.

    python benchmarks/bench_prefetch.py [--rounds 3] [--threads 2] [--out benchmarks/results]

The exit code is 1 if the bar is missed. Everything goes into ``prefetch_float32.json`` and a picture.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import machine, write_json
from prose import follow_up, long_text, opening_question
from rich.console import Console
from rich.table import Table

import sgl_native as sgl
from sgl_core.runtime.engine import Engine

MOST_OF_PLAIN = 0.35
"""B's time to its first token, of what it takes without the prefetch."""
PREFIX_TOKENS = 2_000
TURNS, TURN_TOKENS = 4, 48
"""Of A. The last turn runs while B is answered."""
B_TOKENS = 16
TIMEOUT_S = 600.0
VARIANTS = ("prefetched", "plain")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one variant gave.

    Args:
        ttft_s: of B. ``between_s``: median seconds between tokens of A, before B starts. ``run_s``: of A until then.
        texts: of A's turns and of B.
        tail_tokens: prompt tokens that B computed itself.
        counters: of the engine.
    """

    ttft_s: float
    between_s: float
    run_s: float
    texts: tuple[str, ...]
    tail_tokens: int
    counters: dict[str, int]


def conversation(questions: Sequence[str]) -> sgl.SglFunction:
    """Program A: a turn for each question."""

    @sgl.function
    def a(s: sgl.ProgramState) -> None:
        for number, question in enumerate(questions):
            s += question
            s += sgl.gen(f"turn{number}", max_tokens=TURN_TOKENS, ignore_eos=True, temperature=0)

    return a


def briefing(engine: Engine) -> sgl.CompiledFunction:
    """Program B: a constant prefix of exactly so many tokens, and a question behind it."""
    ids = engine.codec.begin() + engine.codec.encode(long_text(random.Random(8), sentences=160))
    assert len(ids) >= PREFIX_TOKENS, "the text is long enough"
    prefix = engine.codec.decode(ids[:PREFIX_TOKENS])

    @sgl.function
    def b(s: sgl.ProgramState, question: str) -> None:
        s += prefix
        s += question
        s += sgl.gen("answer", max_tokens=B_TOKENS, ignore_eos=True, temperature=0)

    return b.compile(backend=engine)


def play(engine: Engine, *, prefetched: bool) -> Round:
    """One round: A's turns, B behind the last but one, both at once from there."""
    rng = random.Random(3)
    a = conversation([opening_question(rng), *(follow_up(rng) for _ in range(TURNS - 1))])
    b = briefing(engine)
    engine.flush_cache()
    engine.reset_stats()
    started = time.perf_counter()
    if prefetched:
        b.prefetch(backend=engine, timeout_s=TIMEOUT_S)
    running = a.run(backend=engine, stream=True)
    gaps: list[float] = []
    for number in range(TURNS - 1):
        times = [time.perf_counter() for _ in running.text_iter(f"turn{number}")]
        gaps += [after - before for before, after in itertools.pairwise(times)]
    called = time.perf_counter()
    answering = b.run("\nIn one sentence: what is the point of all this?", backend=engine, stream=True)
    pieces = answering.text_iter("answer")
    next(pieces)
    first = time.perf_counter()
    answer = answering.get_var("answer")
    meta = answering.get_meta_info("answer")
    texts = (running.text(), answer)
    stats = engine.stats()
    engine.check_invariants()
    names = ("prefetched_tokens", "prefetch_useful", "prefetch_late", "prefetch_dropped", "num_retractions")
    return Round(
        ttft_s=first - called,
        between_s=statistics.median(gaps),
        run_s=called - started,
        texts=texts,
        tail_tokens=meta["prompt_tokens"] - meta["cached_tokens"],
        counters={name: getattr(stats, name) for name in names},
    )


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians of one variant, and what is the same in all of its rounds."""
    return {
        "rounds": len(rounds),
        "ttft_s": statistics.median(each.ttft_s for each in rounds),
        "ttft_min_s": min(each.ttft_s for each in rounds),
        "ttft_max_s": max(each.ttft_s for each in rounds),
        "between_tokens_s": statistics.median(each.between_s for each in rounds),
        "a_before_b_s": statistics.median(each.run_s for each in rounds),
        "b_computed_tokens": max(each.tail_tokens for each in rounds),
        "counters": rounds[-1].counters,
    }


def print_table(variants: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table("", *variants, title=f"B with a prefix of {PREFIX_TOKENS:,} tokens, called while A runs")
    rows = (
        ("B: seconds to the first token", "ttft_s", "{:.2f}"),
        ("B: prompt tokens computed", "b_computed_tokens", "{}"),
        ("A: seconds between tokens", "between_tokens_s", "{:.3f}"),
        ("A: seconds until B starts", "a_before_b_s", "{:.1f}"),
    )
    for title, key, form in rows:
        table.add_row(title, *(form.format(variant[key]) for variant in variants.values()))
    for name in next(iter(variants.values()))["counters"]:
        table.add_row(name, *(str(variant["counters"][name]) for variant in variants.values()))
    console.print(table)


def draw(variants: dict[str, dict[str, Any]], path: Path) -> None:
    """Two panels: B's time to its first token, and A's time between tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sgl", "font.size": 9.5, "axes.titlesize": 10, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(7.2, 3.4), layout="constrained")
    titles = {"ttft_s": "B: time to the first token", "between_tokens_s": "A: time between tokens, until B starts"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        milliseconds = [1_000 * variant[key] for variant in variants.values()]
        drawn = axes.barh(list(variants), milliseconds, color=["#009E73", "#999999"], height=0.66)
        axes.bar_label(drawn, [f" {value:,.0f} ms" for value in milliseconds])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(milliseconds))
        axes.set_title(title, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    panels[-1].set_xlabel("milliseconds; less is better")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}, expected at least 1")
    rounds: dict[str, list[Round]] = {name: [] for name in VARIANTS}
    status = Console(stderr=True)
    with Engine(dtype="float32", threads=options.threads, cache_tokens=8_192) as engine:
        with status.status("warming up"):
            engine.generate([long_text(random.Random(9), sentences=40)], sgl.SamplingParams(max_new_tokens=4))
        for number in range(options.rounds):
            for name in VARIANTS:
                with status.status(f"{name}, round {number + 1} of {options.rounds}"):
                    rounds[name].append(play(engine, prefetched=name == "prefetched"))
    variants = {name: summary(each) for name, each in rounds.items()}
    ratio = variants["prefetched"]["ttft_s"] / variants["plain"]["ttft_s"]
    is_same = len({each.texts for name in VARIANTS for each in rounds[name]}) == 1
    bars = [
        {"name": "B's first token, of its time without", "value": ratio, "bar": f"at most {MOST_OF_PLAIN:g}"},
        {"name": "identical texts", "value": float(is_same), "bar": "all"},
    ]
    bars[0]["passed"], bars[1]["passed"] = ratio <= MOST_OF_PLAIN, is_same
    content = {
        "name": "prefetch_float32",
        "prefix_tokens": PREFIX_TOKENS,
        "machine": {**machine(), "threads": options.threads},
        "variants": variants,
        "bars": bars,
    }
    write_json(options.out / "prefetch_float32.json", content)
    draw(variants, options.out / "prefetch_float32.svg")
    print_table(variants, Console())
    for entry in bars:
        print(f"{entry['name']}: {entry['value']:.2f} (bar: {entry['bar']}): {'passed' if entry['passed'] else 'MISSED'}")
    return 0 if all(entry["passed"] for entry in bars) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Claims: DSPy programs run at least twice as fast on this engine as over llama.cpp's server, which caches prompts as well.

Seven programs (see ``dspy_workloads.py``), each on our engine with the cache off, plain, with our ``ChatAdapter`` and compiled; and
by DSPy over OpenAI-compatible servers on this machine with the same weights: llama.cpp's, in float32 and with the quantised file
itself, and vLLM's. Rounds alternate. That all systems ask the same and generate the same number of tokens is checked.

    python benchmarks/bench_dspy.py [--programs few-shot,n=8] [--peers llama.cpp] [--quick] [--out benchmarks/results]

The servers' environments are made by the scripts of ``benchmarks/peers``, once; one that is missing or does not start is a line with
the reason. Bars are judged and printed at the end; the exit code is 1 if one is missed. Everything goes into ``dspy_float32.json``
and a picture, or, where it is a part only (see ``is_whole``) or not done yet, into ``dspy_float32_partial.json``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import dspy
import dspy_report as report
from bench_engine import embedded_folder
from dspy_peers import LLAMA, N_AT_ONCE, VLLM, Peer, PeerError, Server, llama_peers, peer_system, vllm_peer
from dspy_systems import CACHE_OFF, COMPILED, FIELDS, OURS, DspyOutcome, engine_system, forbidden_ends
from dspy_workloads import THREADS, WORKLOADS, DspyWorkload, build
from harness import Run, machine, measure, write_json
from recording import RecordingEngine, open_engine
from rich.console import Console

from sgl_core.config import Environment
from sgl_core.runtime.model_source import resolve_model

DTYPE = "float32"
LEAST_RATIO = {"few-shot": 2.0, "n=8": 2.0}
"""Times faster than llama.cpp's server."""
MOST_BELOW_IDEAL = {"few-shot": 0.08, "RAG": 0.08, "BestOfN": 0.08, "ReAct": 0.08, "self-consistency": 0.08}
"""Of the prompt tokens: reported as cached, below what any cache could have had."""
LEAST_CACHED = {"judges": 0.60}
"""Of the prompt tokens reported as cached by the compiled program."""
PEERS = (LLAMA, VLLM)
WITH_N = "n=8"
"""The program on which peers are also reached in a way that hands them ``n``."""
ROUNDS, SLOW_ROUNDS, PATIENCE_S = 2, 1, 20.0
POOL_TOKENS = 24_576
"""Of each engine, for all programs: room for everything, and the same on every machine."""
_QUICK_PROGRAMS = "few-shot,n=8"
_QUICK_SCALE = 0.25
_LOG_COLUMNS = 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", help="names, separated by commas; all by default")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas; none for our systems alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the engine with its cache")
    parser.add_argument("--slow-rounds", type=int, default=SLOW_ROUNDS, help="rounds of the others")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="of no other system one follows a round of so many seconds"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the engine, and of every server")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each program's inputs, in (0, 1]")
    parser.add_argument("--quick", action="store_true", help="a look: parts of two programs, one round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.slow_rounds, options.scale = 1, 1, _QUICK_SCALE
        options.programs = options.programs or _QUICK_PROGRAMS
    options.programs = (options.programs or ",".join(WORKLOADS)).split(",")
    options.peers = [] if options.peers in ("", "none") else options.peers.split(",")
    for name, known in (("programs", tuple(WORKLOADS)), ("peers", PEERS)):
        unknown = [key for key in getattr(options, name) if key not in known]
        if unknown:
            parser.error(f"--{name}: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    for name in ("rounds", "slow_rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected at least 1")
    if not 0.0 < options.scale <= 1.0:
        parser.error(f"--scale: got {options.scale}, expected a number in (0, 1]")
    return options


def is_whole(options: argparse.Namespace) -> bool:
    """Whether the result may stand for all, or is a look at a part of it."""
    enough_rounds = options.rounds >= ROUNDS and options.slow_rounds >= SLOW_ROUNDS and options.patience >= PATIENCE_S
    enough_parts = set(options.peers) == set(PEERS) and set(options.programs) == set(WORKLOADS)
    return options.scale == 1.0 and enough_rounds and enough_parts and not options.quick


# ---- programs -------------------------------------------------------------------------------------------------------------
class Stage:
    """The engines and servers of a whole benchmark, opened once. It owns them.

    Attributes:
        peers: how each server is set up, or why it is not run.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """Load everything."""
        self._options = options
        self._servers: list[Server] = []
        self._opened = ExitStack()
        self.peers: dict[str, dict[str, str]] = {}
        with ExitStack() as opened, Console(stderr=True).status("loading"):
            common = {"threads": options.threads, "cache_tokens": POOL_TOKENS, "dtype": DTYPE}
            self._engine: RecordingEngine = opened.enter_context(open_engine(**common))
            self._without_cache: RecordingEngine = opened.enter_context(open_engine(**common, prefix_cache=False))
            for name in options.peers:
                self._open_peers(name, opened)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all."""
        self._opened.close()

    def _open_peers(self, name: str, opened: ExitStack) -> None:
        threads = self._options.threads
        try:
            found = llama_peers(resolve_model(None, Environment.read()), threads) if name == LLAMA else []
            for peer in found or [vllm_peer(embedded_folder(), threads)]:
                self._open_peer(peer, opened)
        except PeerError as error:
            self.peers[name] = {"not_run": str(error)}

    def _open_peer(self, peer: Peer, opened: ExitStack) -> None:
        try:
            self._servers.append(opened.enter_context(Server(peer)))
            self.peers[peer.name] = {"told": peer.told}
        except PeerError as error:
            self.peers[peer.name] = {"told": peer.told, "not_run": str(error)}

    def run(self, workload: DspyWorkload) -> dict[str, Run]:
        """Measure one program in every way; by the name of the system."""
        rounds, slow, patience_s = self._options.rounds, self._options.slow_rounds, self._options.patience
        systems = [
            engine_system(OURS, workload, self._engine, rounds),
            engine_system(FIELDS, workload, self._engine, rounds),
            engine_system(COMPILED, workload, self._engine, rounds),
            engine_system(CACHE_OFF, workload, self._without_cache, slow, patience_s=patience_s),
        ]
        bias = forbidden_ends(self._engine)
        for server in self._servers:
            for n_at_once in (False, True) if workload.key == WITH_N else (False,):
                systems.append(peer_system(server, workload, bias, slow, patience_s=patience_s, n_at_once=n_at_once))
        runs = measure(systems, workload.num_replies, title=workload.key)
        return {run.name: run for run in runs}

    def summary(self, workload: DspyWorkload, runs: dict[str, Run]) -> dict[str, Any]:
        """A program's part of the report."""
        ours = runs[OURS]
        systems = {name: {**run.as_json(), "times_ours": run.median_s / ours.median_s} for name, run in runs.items()}
        return {
            "title": workload.title,
            "replies": workload.num_replies,
            "max_tokens": workload.max_tokens,
            "sampled": workload.sampled,
            "systems": systems,
            "cached_below_ideal": {name: _below_ideal(run) for name, run in runs.items() if name in (OURS, FIELDS)},
            "identical_outputs": None if workload.sampled else _identical(ours, runs[CACHE_OFF]),
            "agreement": {
                name: compared(_last(ours), _last(run), workload, writes_alike=name not in (FIELDS, COMPILED))
                for name, run in runs.items()
                if name != OURS and not (name == COMPILED and workload.lays_out)
            },
            "same_ids": {server.peer.name: self._same_ids(server, runs) for server in self._servers},
        }

    def _same_ids(self, server: Server, runs: dict[str, Run]) -> bool:
        """Whether the server makes the same ids as our engine of every conversation that both were given."""
        ours, theirs = _last(runs[OURS]), _last(runs[server.peer.name])
        both = {reply.messages for reply in ours.replies} & {reply.messages for reply in theirs.replies}
        with server.round():
            return all(server.prompt_ids(messages) in ours.prompts for messages in both)


def _last(run: Run) -> DspyOutcome:
    assert isinstance(run.outcome, DspyOutcome), "every session here gives one"
    return run.outcome


def _below_ideal(run: Run) -> float:
    """Of all rounds the largest share of the prompt tokens that any cache could have had and ours did not."""
    counted: list[dict[str, int]] = [outcome.details["engine"] for outcome in run.outcomes]
    return max((each["ideal_cache_read"] - each["cache_read"]) / each["prompt_tokens"] for each in counted)


def _identical(*runs: Run) -> bool:
    """Whether all rounds put out the same."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    return len({outcome.outputs for outcome in outcomes if isinstance(outcome, DspyOutcome)}) == 1


def compared(ours: DspyOutcome, theirs: DspyOutcome, workload: DspyWorkload, *, writes_alike: bool) -> dict[str, Any]:
    """How alike two systems were asked, and answered.

    Args:
        writes_alike: whether the other one writes replies by the same rules.

    Returns:
        calls; comparable: asked in the same words (others quote an answer that was different); same_prompts: whether all calls
        that depend on no answer are among them; identical: answered alike, None where that says nothing.
    """
    answers = {reply.messages: reply.texts for reply in ours.replies}
    asked = Counter(reply.messages for reply in ours.replies) & Counter(reply.messages for reply in theirs.replies)
    identical = sum(answers.get(reply.messages) == reply.texts for reply in theirs.replies)
    return {
        "calls": len(theirs.replies),
        "comparable": asked.total(),
        "same_prompts": asked.total() >= workload.num_first,
        "identical": identical if writes_alike and not workload.sampled else None,
    }


# ---- bars -----------------------------------------------------------------------------------------------------------------
def judge(content: dict[str, Any], *, whole: bool) -> list[dict[str, Any]]:
    """Every bar that these results can be held against; speed is judged on whole programs only."""
    bars: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, *, at_least: bool) -> None:
        said = f"{'at least' if at_least else 'at most'} {limit:g}"
        bars.append({"name": name, "value": value, "bar": said, "passed": value >= limit if at_least else value <= limit})

    for key, result in content["programs"].items():
        systems = result["systems"]
        if whole and key in LEAST_RATIO and LLAMA in systems:
            bar(f"{key}: times as fast as {LLAMA}", systems[LLAMA]["times_ours"], LEAST_RATIO[key], at_least=True)
        if key in MOST_BELOW_IDEAL:
            below = result["cached_below_ideal"][OURS]
            bar(f"{key}: cached below the ideal, worst round", below, MOST_BELOW_IDEAL[key], at_least=False)
        if key in LEAST_CACHED:
            compiled = systems[COMPILED]
            share = compiled["cached_tokens"] / compiled["prompt_tokens"]
            bar(f"{key}: cached, compiled", share, LEAST_CACHED[key], at_least=True)
        if result["identical_outputs"] is not None:
            bar(f"{key}: our outputs, cache on and off, identical", float(result["identical_outputs"]), 1.0, at_least=True)
        asked_alike = all(same["same_prompts"] for same in result["agreement"].values())
        bar(f"{key}: all systems were asked the same", float(asked_alike), 1.0, at_least=True)
        for name, is_same in result["same_ids"].items():
            bar(f"{key}: prompts of {name} have our ids", float(is_same), 1.0, at_least=True)
        for name, system in systems.items():
            if name not in (FIELDS, COMPILED) and not name.endswith(N_AT_ONCE):  # whose usage is that of one candidate
                share = system["completion_tokens"] / (system["replies"] * result["max_tokens"])
                bar(f"{key}: {name}, tokens generated of those asked for", share, 1.0, at_least=True)
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped then, too
    logging.getLogger("dspy").setLevel(logging.ERROR)  # it warns of a reply that its budget ends, which here is every reply
    name = f"dspy_{DTYPE}"
    content: dict[str, Any] = {
        "name": f"{name}_partial",
        "dtype": DTYPE,
        "scale": options.scale,
        "machine": {**machine(), "threads": options.threads, "dspy": dspy.__version__, "num_threads": THREADS},
        "programs": {},
    }
    so_far = options.out / f"{content['name']}.json"
    with Stage(options) as stage:
        content["peers"] = stage.peers
        for key in options.programs:
            workload = build(key, scale=options.scale)
            content["programs"][key] = stage.summary(workload, stage.run(workload))
            content["bars"] = judge(content, whole=options.scale == 1.0)
            write_json(so_far, content)  # after each, so that an interrupted run leaves what it has
    if is_whole(options):
        content["name"] = name
        write_json(options.out / f"{name}.json", content)
        so_far.unlink()
    report.print_tables(content, Console(width=None if sys.stdout.isatty() else _LOG_COLUMNS))
    report.write_picture(content, options.out / f"{content['name']}.svg")
    return 0 if all(entry["passed"] for entry in content["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())

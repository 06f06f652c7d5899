"""Claims: a fork costs microseconds and no thread, and a thousand compiled programs need no thread each; what the compiler takes.

The language alone, on a backend without a model. Ten thousand forks live at once: microseconds for a fork, an append and a join,
with text only and with a generation in flight in each; bytes and threads are taken in runs of their own, as watching slows what
it watches. A thousand programs of four generations and a fork each, interpreted and compiled in rounds that alternate, with
equal outputs; beside them the backend alone, which gets the same requests at once. And what tracing and compiling take.

    python benchmarks/bench_language.py [--rounds 5] [--out benchmarks/results]

The exit code is 1 if a bar is missed. Everything goes into ``language.json`` and a picture.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import platform
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import language_report
from harness import Advance, Outcome, Run, Session, System, cpu_name, measure, write_json
from rich.console import Console

from sgl_core.language import ProgramState, SglFunction, assistant, call, function, gen, select, system, user
from sgl_core.testing import FakeBackend
from sgl_core.types import GenRequest, SamplingParams

MOST_FORK_AND_JOIN_US = 50.0
MOST_BYTES = 5_000
"""Of a live fork, its text and its request included."""
MOST_THREADS = 39
NUM_FORKS, NUM_PROGRAMS = 10_000, 1_000
THREADS_AT_REST = 2
"""The main one, and the one that all programs share."""
LATENCIES_S = (0.0, 0.05)
"""Of the backend. The first leaves the programs' own work, the second makes them wait for most of the time."""
LONG_ROUNDS = 667
"""Of ``long_talk``: 15 nodes each."""
JUDGE, LONG = "essay judge", "long talk"
DIMENSIONS = ("clarity", "evidence", "style")
HANG_S = 300.0
_LOG_COLUMNS = 100


# ---- programs -------------------------------------------------------------------------------------------------------------
@function
def fan_out(s: ProgramState, probe: Clock | Watch, held: Held | None) -> None:
    """Ten thousand forks, each with its own text, and a generation where answers are held."""
    s += "The prefix that all of them share. "
    s.sync()
    probe.begin()
    forks = s.fork(NUM_FORKS)
    probe.lap("fork")
    if held is None:
        for index, fork in enumerate(forks):
            fork += f"{index}:"
        probe.lap("append")
        probe.live(forks)
    else:
        for index, fork in enumerate(forks):
            fork += f"{index}:" + gen("answer", max_tokens=4)
        probe.lap("append")
        held.wait_for(NUM_FORKS)
        probe.lap("until all are in flight")
        probe.live()
        held.go.set()
        for fork in forks:
            fork.sync()
        probe.lap("until all are answered")
    forks.join()
    probe.lap("join")


@function
def trip(s: ProgramState, guest: str) -> None:
    """Four generations and a fork."""
    s += system("You plan trips.") + user("Where to with " + guest + "?")
    s += assistant(gen("idea", max_tokens=32))
    forks = s.fork(2)
    for fork, side in zip(forks, ("for", "against"), strict=True):
        fork += user(f"What speaks {side} it?") + assistant(gen("argument", max_tokens=32))
    forks.join()
    s += user("Decide between: " + s["argument"][0] + " / " + s["argument"][1])
    s += assistant(gen("decision", max_tokens=32))


@function
def essay_judge(s: ProgramState, essay: str, dimensions: Sequence[str]) -> None:
    """As in the examples: a fork for each dimension, a summary, a grade."""
    s += system("You judge essays.") + user("Essay:\n" + essay)
    forks = s.fork(len(dimensions))
    for fork, dimension in zip(forks, dimensions, strict=True):
        fork += user(f"Judge the essay on {dimension}.") + assistant(gen("judgement", max_tokens=48, temperature=0))
    forks.join()
    s += user("Summary of the judgements:\n" + call("\n".join, s["judgement"]))
    s += assistant(gen("summary", max_tokens=64, temperature=0))
    s += user("Grade it.") + assistant("Grade: " + select("grade", ["A", "B", "C", "D"]))


@function
def long_talk(s: ProgramState, rounds: int) -> None:
    """Many turns, each with a generation, a fork of two, and a value that is read."""
    for number in range(rounds):
        s += user(f"Question {number}?") + assistant(gen(f"answer_{number}", max_tokens=8))
        forks = s.fork(2)
        for fork in forks:
            fork += f"In round {number}: " + gen("view", max_tokens=8)
        forks.join()
        s += s["view"][0]


STATIC: dict[str, tuple[SglFunction, dict[str, Any]]] = {
    JUDGE: (essay_judge, {"dimensions": DIMENSIONS}),
    LONG: (long_talk, {"rounds": LONG_ROUNDS}),
}
ITEMS = [{"guest": f"guest {number}"} for number in range(NUM_PROGRAMS)]


# ---- watching -------------------------------------------------------------------------------------------------------------
class Held:
    """A backend whose answers all wait for ``go``."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.backend = FakeBackend(self._answer)

    def wait_for(self, num_requests: int) -> None:
        """Until so many are in flight."""
        deadline = time.monotonic() + HANG_S
        while len(self.backend.requests) < num_requests:
            assert time.monotonic() < deadline, "all forks send their request"
            time.sleep(0.001)

    def _answer(self, ids: tuple[int, ...], params: SamplingParams) -> str:
        assert self.go.wait(HANG_S), "the program lets its answers go"
        return answer(ids, params)


class Clock:
    """Takes the time of the parts of one run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def begin(self) -> None:
        """The first part begins."""
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """A part has ended, and the next one begins."""
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now

    def live(self, forks: Iterable[ProgramState] = ()) -> None:
        """Nothing to see for a clock."""


class Watch:
    """Counts what lives while all forks do: bytes allocated since ``begin``, and threads of the process."""

    def __init__(self) -> None:
        self.num_bytes = self.num_threads = self._before = 0

    def begin(self) -> None:
        """What is allocated from here on counts."""
        gc.collect()
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]

    def lap(self, part: str) -> None:
        """No clock here."""

    def live(self, forks: Iterable[ProgramState] = ()) -> None:
        """Wait until everything appended to ``forks`` is there, and count."""
        for fork in forks:
            fork.sync()
        gc.collect()
        self.num_bytes = tracemalloc.get_traced_memory()[0] - self._before
        tracemalloc.stop()
        self.num_threads = num_threads()


def num_threads() -> int:
    """Of this process, whoever started them; where the system does not say, Python's."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


def wait_for_threads() -> None:
    """Until those of earlier work have ended, which they do by themselves when they are idle."""
    deadline = time.monotonic() + HANG_S
    while num_threads() > THREADS_AT_REST:
        assert time.monotonic() < deadline, "idle threads end"
        time.sleep(0.01)


def answer(ids: tuple[int, ...], _: SamplingParams) -> str:
    """Some text that depends on the whole prompt, quickly."""
    return f"answer {hash(ids) % 10**8:08d}"


def digest(states: Iterable[ProgramState]) -> str:
    """Of all texts and variables."""
    told = repr([(state.text(), sorted(state.variables().items())) for state in states])
    return hashlib.sha256(told.encode()).hexdigest()


# ---- live forks -----------------------------------------------------------------------------------------------------------
def fork_system(name: str, rounds: int, *, with_generation: bool) -> System:
    """A round is one run of ``fan_out``; its parts are in the details."""

    @contextmanager
    def opened() -> Iterator[Session]:
        clock = Clock()
        with opened_backend(with_generation=with_generation) as (backend, held):

            def play(advance: Advance) -> Outcome:
                fan_out.run(clock, held, backend=backend)
                advance(NUM_FORKS)
                each = {part: 1e6 * seconds / NUM_FORKS for part, seconds in clock.seconds.items()}
                return Outcome((), {"microseconds": {**each, "fork + join": each["fork"] + each["join"]}})

            yield play

    return System(name, opened, rounds)


@contextmanager
def opened_backend(*, with_generation: bool) -> Iterator[tuple[FakeBackend, Held | None]]:
    """For one run of ``fan_out``; what earlier runs left is collected before."""
    gc.collect()
    held = Held() if with_generation else None
    with held.backend if held is not None else FakeBackend() as backend:
        yield backend, held


def live_forks(rounds: int) -> dict[str, Any]:
    """Times, bytes and threads, with text only and with a generation in each fork."""
    kinds = {"text": False, "generation": True}
    runs = measure([fork_system(f"forks with {name}", rounds, with_generation=kinds[name]) for name in kinds], NUM_FORKS)
    found: dict[str, Any] = {"forks": NUM_FORKS}
    for (name, with_generation), run in zip(kinds.items(), runs, strict=True):
        watch = Watch()
        wait_for_threads()
        with opened_backend(with_generation=with_generation) as (backend, held):
            fan_out.run(watch, held, backend=backend)
        told = [outcome.details["microseconds"] for outcome in run.outcomes]
        found[name] = {
            **run.as_json(),
            "microseconds": {part: statistics.median(one[part] for one in told) for part in told[0]},
            "microseconds_min": {part: min(one[part] for one in told) for part in told[0]},
            "bytes": watch.num_bytes / NUM_FORKS,
            "threads": watch.num_threads,
        }
    return found


# ---- batches --------------------------------------------------------------------------------------------------------------
def batch_system(name: str, run_batch: Callable[..., Any], latency_s: float, rounds: int) -> System:
    """A round is the whole batch; its processor time is noted, too. Outputs are digested behind the clock."""

    @contextmanager
    def opened() -> Iterator[Session]:
        states: list[ProgramState] = []
        details: dict[str, Any] = {}
        gc.collect()
        with FakeBackend(answer, latency_s=latency_s) as backend:

            def play(advance: Advance) -> Outcome:
                began = time.process_time()
                states.extend(run_batch(ITEMS, backend=backend, temperature=0))
                details["cpu_s"] = time.process_time() - began
                advance(NUM_PROGRAMS)
                return Outcome((), details)

            yield play
        details["outputs"] = digest(states)

    return System(name, opened, rounds)


def alone_system(requests: Sequence[GenRequest], latency_s: float, rounds: int) -> System:
    """The backend without the language: all requests of the batch at once."""

    @contextmanager
    def opened() -> Iterator[Session]:
        gc.collect()
        with FakeBackend(answer, latency_s=latency_s) as backend:

            def play(advance: Advance) -> Outcome:
                began = time.process_time()
                for handle in [backend.submit(request) for request in requests]:
                    handle.result(HANG_S)
                advance(NUM_PROGRAMS)
                return Outcome((), {"cpu_s": time.process_time() - began})

            yield play

    return System("backend alone", opened, rounds)


def watched_batch(run_batch: Callable[..., Any]) -> tuple[int, list[GenRequest]]:
    """The most threads that lived while an answer was computed, and what was asked."""
    most = 0

    def watched(ids: tuple[int, ...], params: SamplingParams) -> str:
        nonlocal most
        most = max(most, num_threads())
        return answer(ids, params)

    wait_for_threads()
    with FakeBackend(watched) as backend:
        run_batch(ITEMS, backend=backend, temperature=0)
        return most, backend.requests


def batches(rounds: int) -> dict[str, Any]:
    """Interpreted, compiled, and the backend alone, with each latency."""
    ways: dict[str, Callable[..., Any]] = {"interpreted": trip.run_batch, "compiled": trip.compile().run_batch}
    watched = {name: watched_batch(run_batch) for name, run_batch in ways.items()}
    requests = watched["interpreted"][1]
    found: dict[str, Any] = {"programs": NUM_PROGRAMS, "requests": len(requests), "latencies": []}
    found["threads"] = {name: most for name, (most, _) in watched.items()}
    outputs: set[str] = set()
    for latency_s in LATENCIES_S:
        systems = [batch_system(name, run_batch, latency_s, rounds) for name, run_batch in ways.items()]
        runs = measure([*systems, alone_system(requests, latency_s, rounds)], NUM_PROGRAMS, title=f"{1e3 * latency_s:g} ms:")
        outputs |= {outcome.details["outputs"] for run in runs[: len(ways)] for outcome in run.outcomes}
        times = {run.name: runs[0].median_s / run.median_s for run in runs}
        told = [
            {**run.as_json(), "cpu_s": statistics.median(outcome.details["cpu_s"] for outcome in run.outcomes)} for run in runs
        ]
        found["latencies"].append({"latency_s": latency_s, "systems": told, "times_as_fast_as_interpreted": times})
    found["identical"] = len(outputs) == 1
    return found


# ---- tracing and compiling ------------------------------------------------------------------------------------------------
def work_system(name: str, work: Callable[[], object], rounds: int) -> System:
    """A round is one call of ``work``."""

    @contextmanager
    def opened() -> Iterator[Session]:
        gc.collect()

        def play(advance: Advance) -> Outcome:
            work()
            advance(1)
            return Outcome((), {})

        yield play

    return System(name, opened, rounds)


def compiling(rounds: int) -> dict[str, Any]:
    """Of each program: its nodes, and what tracing it and compiling it (tracing and all passes) take."""
    found: dict[str, Any] = {}
    for name, (program, static) in STATIC.items():
        trace = partial(program.trace, static=static)

        def compile_anew(program: SglFunction = program, static: dict[str, Any] = static) -> object:
            return function(program.func).compile(static=static)  # what a program has compiled once is kept

        systems = [work_system("trace", trace, rounds), work_system("compile", compile_anew, rounds)]
        runs: list[Run] = measure(systems, 1, title=f"{name}:")
        found[name] = {"nodes": len(trace().nodes), **{run.name: run.as_json() for run in runs}}
    return found


# ---- bars -----------------------------------------------------------------------------------------------------------------
def judge(content: dict[str, Any]) -> list[dict[str, Any]]:
    """All bars."""
    bars: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, unit: str) -> None:
        bars.append({"name": name, "value": value, "bar": f"at most {limit:,g}{unit}", "passed": value <= limit})

    for name in ("text", "generation"):
        forks = content["forks"][name]
        bar(f"fork + join, with {name}", forks["microseconds"]["fork + join"], MOST_FORK_AND_JOIN_US, " us")
        bar(f"a live fork, with {name}", forks["bytes"], MOST_BYTES, " bytes")
        bar(f"{NUM_FORKS:,} live forks, with {name}", forks["threads"], MOST_THREADS, " threads")
    batch = content["batches"]
    bar(f"{NUM_PROGRAMS:,} compiled programs", batch["threads"]["compiled"], MOST_THREADS, " threads")
    bars.append({"name": "identical outputs", "value": float(batch["identical"]), "bar": "all", "passed": batch["identical"]})
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}, expected at least 1")
    content: dict[str, Any] = {
        "name": "language",
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "limits": {"microseconds": MOST_FORK_AND_JOIN_US, "bytes": MOST_BYTES, "threads": MOST_THREADS},
        "forks": live_forks(options.rounds),
        "batches": batches(options.rounds),
        "compiling": compiling(options.rounds),
    }
    content["bars"] = judge(content)
    write_json(options.out / "language.json", content)
    language_report.write_picture(content, options.out / "language.svg")
    language_report.print_tables(content, Console(width=None if sys.stdout.isatty() else _LOG_COLUMNS))
    for entry in content["bars"]:
        print(f"{entry['name']}: {entry['value']:,.1f} (bar: {entry['bar']}): {'passed' if entry['passed'] else 'MISSED'}")
    return 0 if all(entry["passed"] for entry in content["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Run a program and write down everything that its user could see, so that two ways of running it can be compared.

Left out is what may differ between two runs of one program: timings, and what was cached.
"""

from __future__ import annotations

import asyncio
import difflib
import enum
import hashlib
import itertools
import pprint
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from sgl_core.language import ProgramState, SglFunction
from sgl_core.testing.byte_codec import ByteCodec
from sgl_core.testing.fake_backend import FakeBackend
from sgl_core.testing.programs.tree import Program, World, function_of
from sgl_core.types import GenRequest, SamplingParams

__all__ = ["Mode", "Observation", "PlannedFailure", "ProgramBackend", "difference", "itself", "observe", "observed_runs"]

Observation = Mapping[str, Any]
"""Plain values, made for ``==`` and for printing."""

Runnable = Any
"""What has ``run``, ``arun`` and ``run_batch``: an ``SglFunction``, or one that was compiled."""

Prepare = Callable[[SglFunction], Runnable]

_VARYING: Final = frozenset({"cached_tokens", "queue_s", "prefill_s", "decode_s"})
_WORDS: Final = ("ka", "lo.", "mi", "ne\n", "pura", "si ", "to", "vé")
_LONG: Final = 600  # tokens, above the default budget of the backend
_SEED: Final = 4711
_CUT_VARIABLE: Final = re.compile(r"variable '\w+' ended")  # which of them it names depends on who comes first


class Mode(enum.StrEnum):
    """Which door a program is run by."""

    RUN = "run"
    STREAM = "stream"
    BATCH = "batch"
    ASYNC = "async"


class PlannedFailure(Exception):
    """The backend was told to fail this request; the message says which."""


class ProgramBackend(FakeBackend):
    """A backend for one run: answers and failures depend on the prompt, and on the seed of a request that samples.

    Args:
        world: what fails.
    """

    def __init__(self, world: World) -> None:
        """Start no thread yet."""
        super().__init__(_Replies(world), fail=_Failures(world), codec=_OwnCodec())

    def new_seed(self) -> int:
        """Always the same one."""
        return _SEED


class _OwnCodec(ByteCodec):
    """Looks new to whoever warns once for each codec."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.fingerprint = f"bytes-{next(self._numbers)}"


class _Replies:
    """Words, numbers where a pattern is asked for; some are empty, some too long, some no numbers."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, ids: tuple[int, ...], params: SamplingParams) -> str:
        digest = _digest(ids, params.seed if params.temperature > 0 else None)
        if params.regex is not None:
            every = self._world.misfits_every
            return "none" if every and digest[0] % every == 0 else str(digest[1])
        if digest[0] == 0:
            return ""
        words = "".join(_WORDS[byte % len(_WORDS)] for byte in digest[2 : 4 + digest[1] % 4])
        if digest[6] % 5 == 0:
            words = f"<think>{digest[7]}</think>{words}"
        return words * (_LONG // len(words)) if digest[0] < 8 else words


class _Failures:
    def __init__(self, world: World) -> None:
        self._every = world.fails_every

    def __call__(self, request: GenRequest) -> BaseException | None:
        digest = _digest(request.input_ids, None)
        if self._every and digest[5] % self._every == 0:
            return PlannedFailure(f"the prompt {digest[:4].hex()} fails")
        return None


def _digest(ids: tuple[int, ...], seed: int | None) -> bytes:
    return hashlib.blake2b(f"{ids};{seed}".encode(), digest_size=12).digest()


def itself(function: SglFunction) -> SglFunction:
    """Interpreted."""
    return function


def observe(program: Program, prepare: Prepare = itself, mode: Mode = Mode.RUN, *, with_requests: bool = False) -> Observation:
    """Run a program once for each of its argument sets and say what is to be seen, warnings included unless a run fails.

    How much of a program that fails has warned before is nobody's promise. Warnings are caught for the whole process, so only
    one thread may do this at a time.

    Args:
        program: what to run; its source is executed anew.
        prepare: what to run instead of the function itself, such as it compiled; an error of it counts as the program's.
        mode: see ``Mode``.
        with_requests: say also what the backend was asked, in any order.
    """
    requests: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = observed_runs(program, prepare, mode, requests)
    warned = sorted(_CUT_VARIABLE.sub("a variable ended", f"{one.category.__name__}: {one.message}") for one in caught)
    if any(isinstance(run, str) for run in runs):
        warned = []
    return {"runs": runs, "warnings": warned, **({"requests": sorted(requests)} if with_requests else {})}


def observed_runs(
    program: Program, prepare: Prepare = itself, mode: Mode = Mode.RUN, requests: list[str] | None = None
) -> list[Any]:
    """Like ``observe``, one entry for each argument set, without warnings; any thread may do this.

    Args:
        program, prepare, mode: as there.
        requests: gets a line for every request that the backend was given.
    """
    function = function_of(program)
    with ProgramBackend(program.world) as backend:
        try:
            runs = _RUNNERS[mode](prepare(function), program, backend)
        except Exception as error:
            runs = [_error(error)] * len(program.argument_sets)
    if requests is not None:
        requests += [f"{asked.input_ids} {asked.heal!r} {asked.params}" for asked in backend.requests]
        requests += [f"{asked.input_ids} {asked.continuations}" for asked in backend.scores]
    return runs


def _run(runnable: Runnable, program: Program, backend: FakeBackend) -> list[Any]:
    options = {"backend": backend, **program.options}
    return [_outcome(partial(runnable.run, **arguments, **options)) for arguments in program.argument_sets]


def _run_streaming(runnable: Runnable, program: Program, backend: FakeBackend) -> list[Any]:
    """Seen from outside while it runs: all text as it comes, then the rest.

    Of a run that fails only the error is told: how far its streams had got by then is nobody's promise.
    """
    seen = []
    for arguments in program.argument_sets:
        state = runnable.run(**arguments, **program.options, backend=backend, stream=True)
        streamed = _or_error(partial(_streamed, state))
        error = state.error()
        seen.append({"streamed": streamed, **_state(state)} if error is None else _error(error))
    return seen


def _streamed(state: ProgramState) -> str:
    return "".join(state.text_iter())


def _run_batch(runnable: Runnable, program: Program, backend: FakeBackend) -> list[Any]:
    outcomes = runnable.run_batch(
        list(program.argument_sets), backend=backend, return_errors=True, num_threads=2, **program.options
    )
    return [_error(outcome) if isinstance(outcome, BaseException) else _state(outcome) for outcome in outcomes]


def _run_async(runnable: Runnable, program: Program, backend: FakeBackend) -> list[Any]:
    async def run_all() -> list[Any]:
        options = {"backend": backend, **program.options}
        running = (runnable.arun(**arguments, **options) for arguments in program.argument_sets)
        return await asyncio.gather(*running, return_exceptions=True)

    return [_error(outcome) if isinstance(outcome, BaseException) else _state(outcome) for outcome in asyncio.run(run_all())]


_RUNNERS: Final = {Mode.RUN: _run, Mode.STREAM: _run_streaming, Mode.BATCH: _run_batch, Mode.ASYNC: _run_async}


def _outcome(run: Callable[[], ProgramState]) -> Any:
    try:
        state = run()
    except Exception as error:
        return _error(error)
    return _state(state)


def _state(state: ProgramState) -> dict[str, Any]:
    names = list(state.stream.variables())
    return {
        "text": _or_error(state.text),
        "messages": _or_error(state.messages),
        "variables": {name: _or_error(partial(state.get_var, name)) for name in names},
        "meta": {name: _or_error(partial(state.get_meta_info, name)) for name in names},
        "returned": _plain(state.ret_value),
    }


def _or_error(read: Callable[[], Any]) -> Any:
    try:
        return _plain(read())
    except Exception as error:
        return _error(error)


def _plain(value: Any) -> Any:
    """Values as they are; states, errors and meta information by what is comparable about them."""
    if isinstance(value, ProgramState):
        return {"text": _or_error(value.text), "variables": _or_error(value.variables)}
    if isinstance(value, BaseException):
        return _error(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key not in _VARYING}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _error(error: BaseException) -> str:
    return f"<{type(error).__name__}: {error}>"


def difference(expected: Observation, got: Observation) -> str:
    """What differs, line by line; empty if nothing does."""
    if expected == got:
        return ""
    before, after = (pprint.pformat(dict(seen), width=150, sort_dicts=False).splitlines() for seen in (expected, got))
    return "\n".join(difflib.unified_diff(before, after, "expected", "got", lineterm="", n=2))

"""Compiled programs: a function, the graphs that it was traced to, and how they are run.

A graph holds for all values of its parameters, save one kind: what a program asks with ``is`` (None, True, False) no trace can
see, so such an argument is fixed in a graph of its own, traced when it first comes. Called by ``SglFunction``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sgl_core.backend import Backend, Handle, TextCodec
from sgl_core.errors import InvalidArgumentError, TraceError
from sgl_core.language.batch import BatchItem, Outcomes, arun_batch, num_items, run_batch
from sgl_core.language.bodies import arun_body, run_body, start_body
from sgl_core.language.defaults import checked_backend, get_default_backend
from sgl_core.language.executor import GraphRun, OnEnd, Plan, RunCall
from sgl_core.language.explain import CompileReport, render
from sgl_core.language.graph import Graph
from sgl_core.language.movement import move as move_parts
from sgl_core.language.passes import PassContext, run_passes
from sgl_core.language.passes.prefixes import constant_prefixes, known_prefixes
from sgl_core.language.places import warn_user
from sgl_core.language.recent import Recent, static_key
from sgl_core.language.run import RUN_OPTIONS
from sgl_core.language.stream import PREFETCH_DEADLINE_S
from sgl_core.language.tracer import Tracer, trace
from sgl_core.language.window import Window
from sgl_core.types import PrefetchRequest, PrefetchResult

if TYPE_CHECKING:
    from sgl_core.language.program import SglFunction
    from sgl_core.language.proposers import Proposer
    from sgl_core.language.state import ProgramState

__all__ = ["CompileOptions", "CompiledFunction", "constant_beginning"]

_Outcome = concurrent.futures.Future["ProgramState"]
_MOST_GRAPHS: Final = 32
_LEAST_PREFETCH: Final = 16
_MOST_IN_FLIGHT: Final = 256
"""Runs of a batch at once: more than an engine has rows, so that it chooses among them, and few enough to hold in memory."""
_MOST_CALL_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile; see ``SglFunction.compile``."""

    fallback: bool = False
    move: Literal["safe", "aggressive"] | None = None
    proposer: Proposer | None = None
    codec: TextCodec | None = None
    drop_unread: bool = False


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One graph, ready to run, and what is to be told of it."""

    plan: Plan
    report: CompileReport


class CompiledFunction:
    """A program that runs from its graph. Made by ``SglFunction.compile``.

    Args:
        function: the program; what is static is bound in it.
        options: how to compile.
        graph: the program was traced elsewhere, and its body is not here.

    Raises:
        TraceError: it cannot be compiled, and may not fall back.
    """

    def __init__(self, function: SglFunction, options: CompileOptions, *, graph: Graph | None = None) -> None:
        """Trace it."""
        self.function = function
        self._given = graph
        self._options = options
        self._graphs: Recent[_Compiled] = Recent(_MOST_GRAPHS)
        self._reason: TraceError | None = None
        self._defaults = {
            name: parameter.default
            for name, parameter in function.signature.parameters.items()
            if name not in function.bound and parameter.default is not parameter.empty
        }
        self._has_warned = False
        try:
            self._main = self._first()
        except TraceError as error:
            if not options.fallback:
                raise
            self._reason = error

    def __repr__(self) -> str:
        how = "interpreted" if self.is_interpreted else "compiled"
        return f"<CompiledFunction {self.function.name}: {how}>"

    @property
    def is_interpreted(self) -> bool:
        """Whether it could not be traced, and falls back to the interpreter."""
        return self._reason is not None

    @property
    def graph(self) -> Graph:
        """The graph that is run; print it, or see ``sgl_core.language.graph_json`` and ``graph_drawing``.

        Raises:
            TraceError: there is none, as the program falls back to the interpreter; says why.
        """
        if self._reason is not None:
            raise self._reason
        return self._main.plan.graph

    def explain(self) -> str:
        """Whether it was compiled, what the passes gained, what was moved, and if it is interpreted, because of which line."""
        if self._reason is not None:
            return render(CompileReport.interpreted(self.function.name, self._reason))
        return "\n\n".join(render(compiled.report) for compiled in self._graphs.values())

    # ---- running -----------------------------------------------------------------------------------------------------
    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Run it; the same arguments, result and errors as ``SglFunction.run``.

        Raises:
            InvalidArgumentError: also for a static argument with another value than the graph's.
        """
        if self._falls_back():
            return self.function.run(*args, **kwargs)
        bound, options = self._start("run", args, kwargs, frozenset({"stream"}))
        if options.get("stream"):
            return start_body(bound.state, bound.pass_here, self.function.name)
        run_body(bound.state, bound.pass_here)
        return bound.state

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Like ``run``, without blocking the loop; host code runs in threads of its own."""
        if self._falls_back():
            return await self.function.arun(*args, **kwargs)
        bound, _ = self._start("arun", args, kwargs)
        await arun_body(bound.state, bound.pass_on_loop)
        return bound.state

    def run_batch(
        self,
        batch: Sequence[BatchItem],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        return_errors: bool = False,
        generator_style: bool = False,
        as_completed: bool = False,
        **options: Any,
    ) -> Any:
        """Run it once for each item; like ``SglFunction.run_batch``, and no run has a thread of its own.

        Args:
            batch, progress_bar, return_errors, generator_style, as_completed, **options: as there.
            num_threads: threads for host code (``sgl.call``); they start as they are needed.
        """
        if self._falls_back():
            return self.function.run_batch(
                batch,
                num_threads=num_threads,
                progress_bar=progress_bar,
                return_errors=return_errors,
                generator_style=generator_style,
                as_completed=as_completed,
                **options,
            )
        self.function.check_batch_options("run_batch", options)
        seed = self.function.batch_seed(options)
        how = Outcomes(num_threads=num_threads, progress_bar=progress_bar, return_errors=return_errors)
        calls = concurrent.futures.ThreadPoolExecutor(min(_MOST_CALL_THREADS, how.threads_for(num_items(batch))), "sgl-call")
        prepare = functools.partial(self._prepare_item, how, calls, **options)
        return run_batch(prepare, batch, how, _Runs(), seed=seed, in_order=generator_style, as_completed=as_completed)

    async def arun_batch(
        self,
        batch: Sequence[BatchItem],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        return_errors: bool = False,
        **options: Any,
    ) -> list[Any]:
        """Like ``SglFunction.arun_batch``; ``num_threads`` is how many run at once, without a thread each."""
        self.function.check_batch_options("arun_batch", options)
        seed = self.function.batch_seed(options)
        how = Outcomes(num_threads=num_threads, progress_bar=progress_bar, return_errors=return_errors)
        return await arun_batch(functools.partial(self.arun, **options), batch, how, seed=seed)

    def prefetch(
        self,
        *args: Any,
        backend: Backend | None = None,
        namespace: str | None = None,
        timeout_s: float | None = PREFETCH_DEADLINE_S,
        **kwargs: Any,
    ) -> list[Handle[PrefetchResult]]:
        """Have the backend compute, while it has nothing better to do, what a run will begin with.

        Args:
            *args: arguments of the function that are known already; all of them may be left out.
            backend: None is the default one.
            namespace: as for ``run``.
            timeout_s: seconds after which nobody needs it any more; None is never.
            **kwargs: arguments by name.

        Returns:
            A handle for each prefix that is long enough to be worth it; they may be forgotten.

        Raises:
            InvalidArgumentError: an argument that the program does not have, or one that is given twice.
            TraceError: there is no graph, as the program falls back to the interpreter; says why.
        """
        target = get_default_backend() if backend is None else checked_backend(backend)
        arguments, _ = self.function.signature.given("prefetch", args, kwargs)
        compiled, known = self._chosen("prefetch", arguments)
        if target.codec is None:
            return []
        prefixes = set(known_prefixes(compiled.plan.graph, target.codec, known).values())
        requests = [
            PrefetchRequest(ids, namespace, timeout_s=timeout_s, when_idle=True)
            for ids in sorted(prefixes, key=len)
            if len(ids) >= _LEAST_PREFETCH and not any(other[: len(ids)] == ids for other in prefixes if other != ids)
        ]
        return [target.prefetch(request) for request in requests]

    # ---- private -----------------------------------------------------------------------------------------------------
    def _first(self) -> _Compiled:
        """The graph of the most general arguments: where the body asks for the value of a flag, its default is fixed."""
        fixed: dict[str, Any] = {}
        while True:
            try:
                return self._compiled(fixed)
            except TraceError as error:
                name = error.argument
                if name is None or name in fixed or not _is_singleton(self._defaults.get(name, name)):
                    raise
                fixed[name] = self._defaults[name]

    def _compiled(self, singletons: Mapping[str, Any]) -> _Compiled:
        """The graph in which these arguments are fixed, too."""
        return self._graphs.get(static_key(singletons), lambda: self._compile(singletons))

    def _compile(self, singletons: Mapping[str, Any]) -> _Compiled:
        options = self._options
        graph = traced = self._traced(singletons)
        moved = None
        if options.move is not None:
            graph, moved = move_parts(graph, options.move, proposer=options.proposer, codec=options.codec)
        context = PassContext(codec=options.codec, drop_unread=options.drop_unread)
        graph, reports = run_passes(graph, context)
        return _Compiled(Plan.of(graph, traced), CompileReport.compiled(graph, reports, moved))

    def _traced(self, singletons: Mapping[str, Any]) -> Graph:
        if self._given is None:
            return trace(self.function, static=singletons)
        if singletons:
            name, value = next(iter(singletons.items()))
            cure = f"Save the program compiled with static={{{name!r}: {value!r}}}."
            raise InvalidArgumentError(name, value, "a value that no program compares with `is`, for a loaded graph", cure)
        return self._given

    def _start(
        self, where: str, args: Sequence[Any], kwargs: Mapping[str, Any], extra: frozenset[str] = frozenset()
    ) -> tuple[_Bound, dict[str, Any]]:
        """The graph for these arguments with the state of a new run; and options that the caller knows."""
        arguments, options = self.function.signature.split(where, args, kwargs, RUN_OPTIONS | extra)
        known = {name: options.pop(name) for name in extra & options.keys()}
        compiled, arguments = self._chosen(where, arguments)
        return _Bound(compiled.plan, self.function.open(options), arguments), known

    def _prepare_item(
        self, how: Outcomes, calls: concurrent.futures.Executor, *args: Any, **kwargs: Any
    ) -> Callable[[], _Outcome]:
        """How to start one run of a batch, anywhere and without blocking. Its graph is chosen here: that may mean to trace."""
        arguments, options = self.function.signature.split("run_batch", args, kwargs, RUN_OPTIONS)
        compiled, arguments = self._chosen("run_batch", arguments)
        context = contextvars.copy_context()

        def start() -> _Outcome:
            bound = _Bound(compiled.plan, self.function.open(options), arguments)
            how.started.append(bound.state.run)
            return bound.pass_without_thread(functools.partial(_submit, calls), context)

        return start

    def _chosen(self, where: str, arguments: dict[str, Any]) -> tuple[_Compiled, dict[str, Any]]:
        """The graph for these arguments, and those of them that it does not fix."""
        for name, fixed in self.function.bound.items():
            if static_key(arguments.pop(name, fixed)) != static_key(fixed):
                cure = f"Compile it for that value: {self.function.name}.compile(static={{{name!r}: ...}})."
                raise InvalidArgumentError(name, "another value", "the value that is static in this graph", cure)
        unknown = arguments.keys() - self.function.signature.parameters.keys()
        if unknown:
            raise InvalidArgumentError(f"{self.function.name}.{where}", sorted(unknown), "arguments that the program names")
        arguments = {**self._defaults, **arguments}
        singletons = {name: value for name, value in arguments.items() if _is_singleton(value)}
        compiled = self._compiled(singletons)
        return compiled, {name: value for name, value in arguments.items() if name not in singletons}

    def _falls_back(self) -> bool:
        if self._reason is None:
            return False
        if not self._has_warned:
            self._has_warned = True
            warn_user(f"{self.function.name} runs interpreted, as it cannot be compiled: {self._reason}")
        return True


class _Runs:
    """The runs of a batch: prepared by whoever submits them, started when there is room; a ``Pool``."""

    def __init__(self) -> None:
        self._window: Window[ProgramState] = Window(_MOST_IN_FLIGHT)

    def submit(self, prepare: Callable[[], Callable[[], _Outcome]], /) -> _Outcome:
        try:
            start = prepare()
        except Exception as error:
            failed = _Outcome()
            failed.set_exception(error)
            return failed
        return self._window.submit(start)

    def shutdown(self) -> None:
        self._window.shutdown()


@dataclass(frozen=True, slots=True)
class _Bound:
    """A graph with arguments and the state of a new run: a body for whoever runs bodies."""

    plan: Plan
    state: ProgramState
    arguments: dict[str, Any]

    def graph_run(self, run_call: RunCall, on_end: OnEnd, context: contextvars.Context | None = None) -> GraphRun:
        return GraphRun(self.plan, self.state.run, self.arguments, run_call, on_end, context=context)

    def pass_without_thread(self, run_call: RunCall, context: contextvars.Context) -> _Outcome:
        """Pass the checkpoints as they come; the outcome is there when the whole program has ended."""
        state, outcome = self.state, _Outcome()

        def finish(error: BaseException | None) -> None:
            try:
                state.ret_value = _returned(graph_run, error)
                state.run.raise_unread()
            except BaseException as raised:
                outcome.set_exception(raised)
            else:
                outcome.set_result(state)

        def end(error: BaseException | None) -> None:
            state.run.end_body(error)
            state.run.when_streams_end(lambda: finish(error))

        graph_run = self.graph_run(run_call, end, context)
        graph_run.start()
        return outcome

    def pass_here(self) -> Any:
        """Pass the checkpoints in this thread, which runs the host code; what the body returns."""
        calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        ended: list[BaseException | None] = []

        def end(error: BaseException | None) -> None:
            ended.append(error)
            calls.put(None)

        graph_run = self.graph_run(calls.put, end)
        graph_run.start()
        while (call := calls.get()) is not None:
            call()
        return _returned(graph_run, ended[0])

    async def pass_on_loop(self) -> Any:
        """The same without blocking the loop; host code runs in short-lived threads, one at a time."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[BaseException | None] = loop.create_future()

        def set_ended(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def end(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(set_ended, error)

        graph_run = self.graph_run(_in_own_thread, end, contextvars.copy_context())
        graph_run.start()
        return _returned(graph_run, await ended)


def _is_singleton(value: Any) -> bool:
    """Whether programs may compare it with ``is``."""
    return value is None or isinstance(value, bool)


def constant_beginning(function: SglFunction, static: Mapping[str, Any], codec: TextCodec) -> tuple[int, ...]:
    """The ids that every run begins with; of a program that cannot be traced, as far as it could be."""
    tracer = Tracer(function, static=static)
    try:
        graph = tracer.run()
    except TraceError:
        graph = tracer.recorded()
    return constant_prefixes(graph, codec).get(0, ())


def _returned(graph_run: GraphRun, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return graph_run.returned()


def _submit(calls: concurrent.futures.Executor, call: Callable[[], None]) -> None:
    calls.submit(call)


def _in_own_thread(call: Callable[[], None]) -> None:
    threading.Thread(target=call, name="sgl-call", daemon=True).start()

"""``@function``: a Python function whose first argument is a program's state.

Sync and async are one path: the body runs in the caller's thread, in one worker thread, or on the loop; everything it starts
runs on the dispatcher. ``run`` returns when all of it has ended, so a program leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError, ProgramError, TraceError, UnknownOptionError
from sgl_core.language.batch import BATCH_OPTIONS, BatchItem, Outcomes, ThreadPool, arun_batch, num_items, run_batch
from sgl_core.language.bodies import arun_body, in_thread, run_body, start_body
from sgl_core.language.compiled import CompiledFunction, CompileOptions, constant_beginning
from sgl_core.language.defaults import checked_backend, get_default_backend
from sgl_core.language.explain import CompileReport, render
from sgl_core.language.graph import Graph
from sgl_core.language.ir import Expr
from sgl_core.language.lowering import copied
from sgl_core.language.movement import check_move
from sgl_core.language.proposers import Proposer
from sgl_core.language.recent import Recent, static_key
from sgl_core.language.run import CURRENT_STATE, PROGRAM_OPTIONS, RUN_OPTIONS, ProgramRun, check_seed
from sgl_core.language.sampling import sampling_options
from sgl_core.language.signature import Signature
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_state import TracedState
from sgl_core.language.tracer import trace
from sgl_core.types import PrefetchRequest

__all__ = ["SglFunction", "function"]

_MOST_COMPILED: Final = 16


def function(func: Callable[..., Any]) -> SglFunction:
    """Make a program of ``func(s, ...)``; plain and ``async def`` functions both work.

    Raises:
        InvalidArgumentError: its signature cannot be a program's.
    """
    return SglFunction(func)


class SglFunction:
    """A program. Call it inside another one; ``run``, ``arun`` and ``run_batch`` start one.

    Args:
        func: the body; its first parameter is the state, the others are given by name or position.
        bound: arguments that are fixed already.
    """

    def __init__(self, func: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        """Read the signature."""
        if not callable(func):
            raise InvalidArgumentError("function", type(func).__name__, "a function with the state as first parameter")
        functools.update_wrapper(self, func)
        self.func = func
        self.name: str = getattr(func, "__name__", type(func).__name__)
        self.bound = dict(bound or {})
        self.is_async = inspect.iscoroutinefunction(func)
        self.signature = Signature(self.name, func, self.bound)
        self._compiled: Recent[CompiledFunction] = Recent(_MOST_COMPILED)

    def __repr__(self) -> str:
        return f"<SglFunction {self.name}({', '.join(self.signature.parameters)})>"

    # ---- starting a program ------------------------------------------------------------------------------------------
    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Run the program and wait for all of it.

        Args:
            *args: arguments of the function, without the state.
            **kwargs: arguments of the function by name; further ``backend`` (None: the default one), ``stream`` (True
                returns at once, and the body runs in a thread of its own), ``seed`` (of the program; None draws one),
                ``namespace`` (prefixes are shared within one only), and any sampling option such as ``temperature`` or
                ``max_new_tokens``, for every gen that does not set it. Where the function has a parameter of such a
                name, the function gets it.

        Returns:
            The program's state.

        Raises:
            UnknownOptionError: a keyword that neither function nor ``run`` knows.
            InvalidArgumentError: an argument is missing or cannot be used.
            BaseException: what the body raised; or the first error in any of its streams that nobody has read.
        """
        arguments, options = self.signature.split("run", args, kwargs, RUN_OPTIONS | {"stream"})
        stream = options.pop("stream", False)
        state = self.open(options)
        body = functools.partial(self._body, state, arguments)
        if stream:
            return start_body(state, body, self.name)
        run_body(state, body)
        return state

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Like ``run``, without blocking the loop; a plain ``def`` body runs in a thread of its own.

        Cancelling it aborts the program's requests.
        """
        arguments, options = self.signature.split("arun", args, kwargs, RUN_OPTIONS)
        state = self.open(options)
        if self.is_async:
            await arun_body(state, functools.partial(self._body_async, state, arguments))
            return state
        body = functools.partial(self._body, state, arguments)
        try:
            await in_thread(functools.partial(run_body, state, body), f"sgl-{self.name}")
        except asyncio.CancelledError:
            state.run.cancel()
            raise
        return state

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
        """Run the program once for each item.

        Args:
            batch: arguments of each run: a dict by name, or a tuple or list by position.
            num_threads: programs that run at once; "auto" is one per item, at most 64, which fills the default batch of
                an engine. Their threads mostly wait.
            progress_bar: show one (with ``rich`` if it is installed, else a line on stderr).
            return_errors: put an item's exception in its place instead of raising.
            generator_style: return an iterator in order, which yields each state when it is there.
            as_completed: return an iterator of ``(index, state)`` in the order in which they end.
            **options: as in ``run``, for every item. With ``seed`` each item gets a seed of its own derived from it.

        Returns:
            The states, in order of the batch.

        Raises:
            InvalidArgumentError: the batch or an option cannot be used.
            BaseException: the error of the first item that failed, after all have run (the iterators raise it in its
                turn). Items do not disturb each other.
        """
        self.check_batch_options("run_batch", options)
        seed = self.batch_seed(options)
        outcomes = Outcomes(num_threads=num_threads, progress_bar=progress_bar, return_errors=return_errors)
        run = functools.partial(self._run_item, outcomes, **options)
        pool = ThreadPool(outcomes.threads_for(num_items(batch)))
        return run_batch(run, batch, outcomes, pool, seed=seed, in_order=generator_style, as_completed=as_completed)

    async def arun_batch(
        self,
        batch: Sequence[BatchItem],
        *,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        return_errors: bool = False,
        **options: Any,
    ) -> list[Any]:
        """Like ``run_batch``, without blocking the loop. Cancelling it aborts what runs; the rest never begins.

        Raises:
            InvalidArgumentError: the batch or an option cannot be used.
            BaseException: the error of the first item that failed, after all have run.
        """
        self.check_batch_options("arun_batch", options)
        seed = self.batch_seed(options)
        outcomes = Outcomes(num_threads=num_threads, progress_bar=progress_bar, return_errors=return_errors)
        return await arun_batch(functools.partial(self.arun, **options), batch, outcomes, seed=seed)

    def check_batch_options(self, where: str, options: Mapping[str, Any]) -> None:
        """Refuse a keyword that neither the function nor a batch knows, before anything runs.

        Raises:
            UnknownOptionError: for the first of them.
        """
        known = {*self.signature.parameters, *RUN_OPTIONS}
        for name in options:
            if name not in known and not self.signature.takes_any:
                raise UnknownOptionError(f"{self.name}.{where}", name, known | BATCH_OPTIONS[where])

    def batch_seed(self, options: dict[str, Any]) -> int | None:
        """The seed that the items' are derived from, taken out of the options."""
        seed = options.pop("seed", None) if "seed" not in self.signature.parameters else None
        if seed is not None:
            check_seed(seed)
        return seed

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same function with some arguments fixed; arguments by position fill the others.

        Raises:
            UnknownOptionError: it has no such parameter.
        """
        self.signature.check_bindable("bind", list(kwargs))
        return SglFunction(self.func, {**self.bound, **kwargs})

    # ---- compiling ---------------------------------------------------------------------------------------------------
    def trace(self, *, static: Mapping[str, Any] | None = None) -> Graph:
        """Run the body once with abstract arguments and return the graph of what it does, before any pass.

        Args:
            static: arguments that are fixed in the graph; their values may decide what the body does.

        Raises:
            TraceError: the body needs a value that is there only when it runs; says where, and what to write instead.
            UnknownOptionError: ``static`` names an argument that the function does not have.
        """
        fixed = _fixed(static)
        self.signature.check_bindable("trace", list(fixed))
        return trace(self, static=fixed)

    def compile(
        self,
        *,
        static: Mapping[str, Any] | None = None,
        fallback: bool = False,
        move: Literal["safe", "aggressive"] | None = None,
        proposer: Proposer | None = None,
        backend: Backend | None = None,
        drop_unread: bool = False,
    ) -> CompiledFunction:
        """Make a program that runs from its graph: the same texts, values, messages and errors, with nobody waiting in between.

        Args:
            static: as for ``trace``. What was compiled is kept: the same values give the same object.
            fallback: True lets a program that cannot be traced run interpreted; it warns, and ``explain`` says why.
            move: "safe" lets parts that their author declared ``commutative`` change places, "aggressive" any constants and
                arguments between two boundaries, so that more of the prompt is shared; None moves nothing. ``explain``
                shows the difference.
            proposer: what suggests the order, for "aggressive" alone; None is constants first.
            backend: whose tokens ``explain`` counts; nothing is sent to it, unless by the proposer.
            drop_unread: leave out generations whose values nobody can see, and with them their errors.

        Raises:
            TraceError: it cannot be traced, and ``fallback`` is False.
            InvalidArgumentError: an option cannot be used.
        """
        check_move(move, proposer)
        if proposer is not None and not callable(getattr(proposer, "propose", None)):
            raise InvalidArgumentError("proposer", type(proposer).__name__, "an object with propose(region)")
        codec = None if backend is None else checked_backend(backend).codec
        fixed = _fixed(static)
        self.signature.check_bindable("compile", list(fixed))
        fixed = {name: copied(value) for name, value in {**self.bound, **fixed}.items()}  # as they are now: a graph stays
        options = CompileOptions(fallback=fallback, move=move, proposer=proposer, codec=codec, drop_unread=drop_unread)
        key = (static_key(fixed), fallback, move, id(proposer), None if codec is None else codec.fingerprint, drop_unread)
        return self._compiled.get(key, lambda: CompiledFunction(self.bind(**fixed), options))

    def explain(self) -> str:
        """How it compiles: what each ``compile`` so far has made of it, or else what ``compile()`` would say."""
        compiled = self._compiled.values()
        if compiled:
            return "\n\n".join(one.explain() for one in compiled)
        try:
            return self.compile().explain()
        except TraceError as error:
            return render(CompileReport.interpreted(self.name, error))

    def cache(self, backend: Backend | None = None, *, static: Mapping[str, Any] | None = None) -> int:
        """Have the backend compute now what every run begins with, and wait for it.

        Args:
            backend: None is the default one.
            static: as for ``trace``.

        Returns:
            Tokens of that prefix. What cannot be traced to its end is computed as far as it was traced.
        """
        fixed = _fixed(static)
        self.signature.check_bindable("cache", list(fixed))
        target = get_default_backend() if backend is None else checked_backend(backend)
        if target.codec is None:
            return 0
        prefix = constant_beginning(self, fixed, target.codec)
        if prefix:
            target.prefetch(PrefetchRequest(prefix)).result()
        return len(prefix)

    # ---- inside a program --------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it inside a running program.

        ``expand(s, tip)`` appends to the stream of ``s`` and returns what the body returns, or ``s``. ``expand(tip)``
        starts a stream of its own and returns its state as soon as the body has run, which waits only for variables
        that it reads itself. An ``async def`` function gives an awaitable of either. Which program is running is a
        context variable: start threads of your own with ``contextvars.copy_context().run``.

        Raises:
            ProgramError: no program is running here.
        """
        current = CURRENT_STATE.get()
        if args and not isinstance(args[0], Expr) and isinstance(args[0], ProgramState):
            state, args, is_inline = args[0], args[1:], True
        elif current is not None:
            state, is_inline = current.begin_call(self.name), False
        else:
            raise ProgramError(
                f"{self.name}(...) was called outside a program; use {self.name}.run(...), or give it the state: "
                f"{self.name}(s, ...)"
            )
        arguments, _ = self.signature.split("", args, kwargs, frozenset())
        if self.is_async:
            return self._call_async(state, arguments, is_inline)
        with _current(state):
            value = self.func(state, **arguments)
        return self._returned(state, value, is_inline)

    async def _call_async(self, state: ProgramState, arguments: dict[str, Any], is_inline: bool) -> Any:
        with _current(state):
            value = await self.func(state, **arguments)
        return self._returned(state, value, is_inline)

    def _returned(self, state: ProgramState, value: Any, is_inline: bool) -> Any:
        if is_inline:
            return state if value is None else value
        state.ret_value = value
        return state

    # ---- for this package --------------------------------------------------------------------------------------------
    def open(self, options: dict[str, Any]) -> ProgramState:
        """The state of a new run with these options, which ``Signature.split`` has let through."""
        current = CURRENT_STATE.get()
        if isinstance(current, TracedState):
            current.refuse_run(self.name)
        given = options.pop("backend", None)
        backend = get_default_backend() if given is None else checked_backend(given)
        run_options = {name: options.pop(name) for name in PROGRAM_OPTIONS & options.keys()}
        run = ProgramRun(backend, defaults=sampling_options(f"{self.name}.run", options), **run_options)
        return ProgramState(run, run.root)

    def _run_item(self, batch: Outcomes, *args: Any, **kwargs: Any) -> ProgramState:
        arguments, options = self.signature.split("run_batch", args, kwargs, RUN_OPTIONS)
        state = self.open(options)
        batch.started.append(state.run)
        run_body(state, functools.partial(self._body, state, arguments))
        return state

    def _body(self, state: ProgramState, arguments: dict[str, Any]) -> Any:
        with _current(state):
            if not self.is_async:
                return self.func(state, **arguments)
            if _loop_is_running():
                raise ProgramError(
                    f"{self.name} is an async function and a loop is running here; use: await {self.name}.arun(...)"
                )
            return asyncio.run(self.func(state, **arguments))

    async def _body_async(self, state: ProgramState, arguments: dict[str, Any]) -> Any:
        with _current(state):
            return await self.func(state, **arguments)


@contextlib.contextmanager
def _current(state: ProgramState) -> Iterator[None]:
    """Functions called inside belong to the program of ``state``."""
    token = CURRENT_STATE.set(state)
    try:
        yield
    finally:
        CURRENT_STATE.reset(token)


def _fixed(static: Mapping[str, Any] | None) -> dict[str, Any]:
    """Static arguments by name."""
    if static is not None and not isinstance(static, Mapping):
        raise InvalidArgumentError("static", type(static).__name__, "a dict of arguments", 'Write static={"name": value}.')
    return dict(static or {})


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

"""``@function``: a Python function whose first argument is a program's state.

Sync and async are one path: the body runs in the caller's thread, in one worker thread, or on the loop; everything it starts
runs on the dispatcher. ``run`` returns when all of it has ended, so a program leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sgl_core.errors import InvalidArgumentError, ProgramError, UnknownOptionError
from sgl_core.language.batch import BatchItem, Outcomes, run_batch
from sgl_core.language.defaults import checked_backend, get_default_backend
from sgl_core.language.run import CURRENT_STATE, ProgramRun, check_seed
from sgl_core.language.sampling import OPTION_NAMES, sampling_options
from sgl_core.language.state import ProgramState

__all__ = ["SglFunction", "function"]

_RUN_OPTIONS: Final = frozenset({"backend", "namespace", "seed"})
_STREAM: Final = frozenset({"stream"})


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
        self._parameters, self._takes_any = _own_parameters(self.name, func)

    def __repr__(self) -> str:
        return f"<SglFunction {self.name}({', '.join(self._parameters)})>"

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
        arguments, options = self._split("run", args, kwargs, _RUN_OPTIONS | _STREAM | OPTION_NAMES)
        stream = options.pop("stream", False)
        state = self._open(options)
        if not stream:
            self._run_body(state, arguments)
            return state
        outside = ProgramState(state.run, state.stream, is_outside=True)
        work = functools.partial(contextvars.copy_context().run, self._run_quietly, state, outside, arguments)
        threading.Thread(target=work, name=f"sgl-{self.name}", daemon=True).start()
        return outside

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Like ``run``, without blocking the loop; a plain ``def`` body runs in a thread of its own.

        Cancelling it aborts the program's requests.
        """
        arguments, options = self._split("arun", args, kwargs, _RUN_OPTIONS | OPTION_NAMES)
        state = self._open(options)
        try:
            if self.is_async:
                await self._run_body_async(state, arguments)
            else:
                await _in_thread(functools.partial(self._run_body, state, arguments), f"sgl-{self.name}")
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
        seed = options.pop("seed", None) if "seed" not in self._parameters else None
        if seed is not None:
            check_seed(seed)
        outcomes = Outcomes(num_threads=num_threads, progress_bar=progress_bar, return_errors=return_errors)
        run = functools.partial(self._run_item, outcomes, **options)
        return run_batch(run, batch, outcomes, seed=seed, in_order=generator_style, as_completed=as_completed)

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same function with some arguments fixed; arguments by position fill the others.

        Raises:
            UnknownOptionError: it has no such parameter.
        """
        for name in kwargs:
            if name not in self._parameters and not self._takes_any:
                raise UnknownOptionError(f"{self.name}.bind", name, self._parameters)
        return SglFunction(self.func, {**self.bound, **kwargs})

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
        if args and isinstance(args[0], ProgramState):
            state, args, is_inline = args[0], args[1:], True
        elif current is not None:
            state, is_inline = ProgramState(current.run, current.stream.call()), False
        else:
            raise ProgramError(
                f"{self.name}(...) was called outside a program; use {self.name}.run(...), or give it the state: "
                f"{self.name}(s, ...)"
            )
        arguments, _ = self._split("call", args, kwargs, frozenset())
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

    # ---- running a body ----------------------------------------------------------------------------------------------
    def _open(self, options: dict[str, Any]) -> ProgramState:
        given = options.pop("backend", None)
        backend = get_default_backend() if given is None else checked_backend(given)
        run_options = {name: options.pop(name) for name in _RUN_OPTIONS & options.keys()}
        run = ProgramRun(backend, defaults=sampling_options(f"{self.name}.run", options), **run_options)
        return ProgramState(run, run.root)

    def _run_item(self, batch: Outcomes, *args: Any, **kwargs: Any) -> ProgramState:
        arguments, options = self._split("run_batch", args, kwargs, _RUN_OPTIONS | OPTION_NAMES)
        state = self._open(options)
        batch.started.append(state.run)
        self._run_body(state, arguments)
        return state

    def _run_body(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        run = state.run
        try:
            try:
                with _ending(run), _current(state):
                    state.ret_value = self._value_of_body(state, arguments)
            except Exception:
                run.wait()
                raise
            run.wait()
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt, also while waiting: nobody wants the rest any more
            run.cancel()
            raise
        run.raise_unread()

    def _value_of_body(self, state: ProgramState, arguments: dict[str, Any]) -> Any:
        if not self.is_async:
            return self.func(state, **arguments)
        if _loop_is_running():
            raise ProgramError(f"{self.name} is an async function and a loop is running here; use: await {self.name}.arun(...)")
        return asyncio.run(self.func(state, **arguments))

    async def _run_body_async(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        run = state.run
        try:
            with _ending(run), _current(state):
                state.ret_value = await self.func(state, **arguments)
        except Exception:
            await run.wait_async()
            raise
        await run.wait_async()
        run.raise_unread()

    def _run_quietly(self, state: ProgramState, outside: ProgramState, arguments: dict[str, Any]) -> None:
        """For ``stream=True``: what goes wrong stays with the run, and readers outside get it."""
        try:
            self._run_body(state, arguments)
        except BaseException as error:
            state.run.body_error = error
        finally:
            outside.ret_value = state.ret_value
            state.run.ended.set()

    # ---- arguments ---------------------------------------------------------------------------------------------------
    def _split(
        self, where: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: frozenset[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the function, and options of the method that was called."""
        place = self.name if where == "call" else f"{self.name}.{where}"
        free = [name for name in self._parameters if name not in self.bound]
        if len(args) > len(free):
            raise InvalidArgumentError(place, f"{len(args)} arguments by position", f"at most {len(free)}")
        arguments = {**self.bound, **dict(zip(free, args, strict=False))}
        chosen: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._parameters:
                if name in free[: len(args)]:
                    raise InvalidArgumentError(name, "a value by position and one by name", "one of them")
                arguments[name] = value
            elif name in options:
                chosen[name] = value
            elif self._takes_any:
                arguments[name] = value
            else:
                raise UnknownOptionError(place, name, {*self._parameters, *options})
        for name, parameter in self._parameters.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                raise InvalidArgumentError(name, "nothing", "a value", f"{place} needs this argument.")
        return arguments, chosen


def _own_parameters(name: str, func: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters behind the state, and whether it takes any keyword."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(func).parameters.values())
    if not parameters or parameters[0].kind not in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
        raise InvalidArgumentError(name, "no first parameter", "the state as first parameter", f"Write def {name}(s, ...).")
    own = parameters[1:]
    for parameter in own:
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.VAR_POSITIONAL):
            raise InvalidArgumentError(
                name, f"parameter {parameter}", "parameters that can be given by name", "Take a list instead of *args."
            )
    named = {parameter.name: parameter for parameter in own if parameter.kind is not kinds.VAR_KEYWORD}
    return named, len(named) < len(own)


@contextlib.contextmanager
def _current(state: ProgramState) -> Iterator[None]:
    """Functions called inside belong to the program of ``state``."""
    token = CURRENT_STATE.set(state)
    try:
        yield
    finally:
        CURRENT_STATE.reset(token)


@contextlib.contextmanager
def _ending(run: ProgramRun) -> Iterator[None]:
    """Tell the run when its body has ended, and with what."""
    try:
        yield
    except BaseException as error:
        run.end_body(error)
        raise
    run.end_body()


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_thread(work: Callable[[], None], name: str) -> None:
    """Run ``work`` in a thread of its own. A shared pool could be full of bodies that wait for each other."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def report(error: BaseException | None) -> None:
        if ended.cancelled():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except StopIteration as raised:  # no future can hold one, and nobody would be woken
            error = RuntimeError("the program raised StopIteration")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(report, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    await ended

"""``s`` while a program is traced: it takes what the body writes and gives values that are not there yet.

It looks like a ``ProgramState`` and refuses like one, at the same moments; nothing of it reaches an executor. Made by
``tracer``, by forks, and where one program calls another.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

from sgl_core.errors import VariableNotFoundError
from sgl_core.language.abstract import (
    Abstract,
    AbstractList,
    AbstractValue,
    Origin,
    entries_of,
    is_handed_to_c_code,
    is_list,
    is_text,
    is_value,
    origin_of,
)
from sgl_core.language.graph import Call, Join, SetVar
from sgl_core.language.group import ForkGroup
from sgl_core.language.ir import Expr, JoinedValue, NodeValue, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, as_nodes
from sgl_core.language.joining import check_fork, check_join
from sgl_core.language.lowering import check_host_function, lowered
from sgl_core.language.places import at_user_line
from sgl_core.language.recorder import Recorder
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_stream import TracedStream
from sgl_core.language.variables import check_name

__all__ = ["TracedForkGroup", "TracedState"]


class TracedState(ProgramState):
    """The state of a program that is traced, of a fork of it, or of a function called in it."""

    __slots__ = ("_stream",)

    def __init__(self, stream: TracedStream) -> None:
        """Made for each traced stream; the interpreter's own parts stay empty."""
        self._stream = stream
        self.ret_value: Any = None

    @property
    def traced(self) -> TracedStream:
        """What it is a face of; for this package."""
        return self._stream

    # ---- writing -----------------------------------------------------------------------------------------------------
    def __iadd__(self, expr: Expr | str) -> Self:
        """Record text or an expression."""
        self._stream.submit(as_nodes(expr))
        return self

    def set_var(self, name: str, value: Any) -> None:
        """Define a variable; reading it gives ``value`` itself."""
        self._check_name(name)
        check_name(name)
        self._stream.check_open()
        recorder = self._stream.recorder
        leaf = lowered(value, f's["{name}"] = ...', _Host(self))
        recorder.record(self._stream.id, SetVar(name, leaf))
        recorder.watch(name, value)
        self._stream.define(name, _again(value, leaf, recorder))

    def __setitem__(self, name: str, value: Any) -> None:
        """Define a variable."""
        self.set_var(name, value)

    def var_scope(self, name: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Capture the text that is appended inside into variable ``name``."""
        self._check_name(name)
        check_name(name)
        return _Block(self._stream, ScopeBegin(name), ScopeEnd(name))

    def fork(self, n: int = 1) -> TracedForkGroup:
        """Start ``n`` streams from here."""
        self._stream.check_constant(n, "fork(...) as n")
        check_fork(n)
        children, fork = self._stream.fork(n)
        return TracedForkGroup(self, tuple(TracedState(child) for child in children), fork)

    def begin_call(self, function: str) -> TracedState:
        """The state of a function that is called in this program as a stream of its own."""
        return TracedState(self._stream.call(function))

    def copy(self) -> TracedState:
        """An independent continuation."""
        (child,), _ = self._stream.fork(1)
        return TracedState(child)

    def __enter__(self) -> Self:
        """This state."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Refuse further writing; reading goes on."""
        self._stream.close()

    # ---- turns -------------------------------------------------------------------------------------------------------
    def system(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Record a system turn."""
        return self._traced_turn("system", expr)

    def user(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Record a user turn."""
        return self._traced_turn("user", expr)

    def assistant(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Record an assistant turn."""
        return self._traced_turn("assistant", expr)

    def system_begin(self) -> None:
        """Open a system turn."""
        self._stream.submit((RoleBegin("system"),))

    def system_end(self) -> None:
        """Close the system turn."""
        self._stream.submit((RoleEnd("system"),))

    def user_begin(self) -> None:
        """Open a user turn."""
        self._stream.submit((RoleBegin("user"),))

    def user_end(self) -> None:
        """Close the user turn."""
        self._stream.submit((RoleEnd("user"),))

    def assistant_begin(self) -> None:
        """Open an assistant turn."""
        self._stream.submit((RoleBegin("assistant"),))

    def assistant_end(self) -> None:
        """Close the assistant turn."""
        self._stream.submit((RoleEnd("assistant"),))

    def _traced_turn(self, role: str, expr: Expr | str | None) -> contextlib.AbstractContextManager[None]:
        if expr is None:
            return _Block(self._stream, RoleBegin(role), RoleEnd(role))
        self._stream.submit((RoleBegin(role), *as_nodes(expr, f"s.{role}(...)"), RoleEnd(role)))
        return contextlib.nullcontext()

    # ---- reading -----------------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Any:
        """A value that will be there; the graph fails here if it will not.

        Raises:
            VariableNotFoundError: no node of this stream defines it.
        """
        self._check_name(name)
        is_defined, value = self._stream.find(name)
        if not is_defined:
            known = ", ".join(self._stream.names()) or "none"
            raise VariableNotFoundError(at_user_line(f"variable {name!r} is not defined in this stream; defined: {known}"))
        if is_value(value):
            self._stream.recorder.read(self._stream.id, origin_of(value))
        return value

    def get_var(self, name: str) -> Any:
        """The same as ``s[name]``."""
        return self[name]

    async def aget(self, name: str) -> Any:
        """The same as ``s[name]``; a trace waits for nothing."""
        return self[name]

    def __contains__(self, name: object) -> bool:
        """Whether a variable is defined."""
        self._check_name(name)
        return isinstance(name, str) and self._stream.find(name)[0]

    def sync(self) -> None:
        """Nothing: a trace waits for nothing."""

    def variables(self) -> NoReturn:
        """Refuse: there are no values yet."""
        raise self._refused("variables()")

    def get_meta_info(self, name: str) -> NoReturn:  # noqa: ARG002
        """Refuse: nothing has been generated yet."""
        raise self._refused("get_meta_info(...)")

    def text(self) -> NoReturn:
        """Refuse: there is no text yet."""
        raise self._refused("text()")

    def messages(self) -> NoReturn:
        """Refuse: there is no text yet."""
        raise self._refused("messages()")

    def error(self) -> NoReturn:
        """Refuse: nothing has run yet."""
        raise self._refused("error()")

    def abort(self) -> NoReturn:
        """Refuse: nothing runs."""
        raise self._refused("abort()")

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:  # noqa: ARG002
        """Refuse: there is no text yet."""
        raise self._refused("text_iter(...)")

    def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:  # noqa: ARG002
        """Refuse: there is no text yet."""
        raise self._refused("text_async_iter(...)")

    def call_host(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AbstractValue:
        """Record a call of host code; its result. For ``sgl.call``."""
        host = _Host(self)
        check_host_function(fn, host)
        if not callable(fn):
            raise TypeError(f"sgl.call: {type(fn).__name__!r} object is not callable")
        if inspect.iscoroutinefunction(fn):
            raise host.refuse(
                "sgl.call gets an async function", "Give it a plain function; a compiled program runs it in a thread."
            )
        return host.call(Call(fn, lowered(args, "sgl.call(...)", host), lowered(dict(kwargs), "sgl.call(...)", host)))

    def _check_name(self, name: object) -> None:
        self._stream.check_constant(name, "s as the name of a variable")

    def refuse_run(self, program: str) -> NoReturn:
        """A whole program is started inside the body, which would run it once, while it is traced."""
        raise self._stream.recorder.refusals.refuse(
            f"{program} is started inside a program that is being compiled",
            f"Write sgl.call({program}.run, ...) to start it in every run, or {program}(...) to make it part of this program.",
        )

    def _refused(self, method: str) -> BaseException:
        return self._stream.recorder.refusals.refuse(
            f"s.{method} is asked for inside a program that is being compiled, which has not run",
            "Read it from the state that run(...) returns; for a program that needs it on its way compile with fallback=True.",
        )


class TracedForkGroup(ForkGroup):
    """The streams of one traced ``fork``, in order."""

    def __init__(self, parent: TracedState, states: tuple[TracedState, ...], fork: int) -> None:
        """Made by ``TracedState.fork``; ``fork`` is its node."""
        super().__init__(parent, states)
        self._stream = parent.traced
        self._children = tuple(state.traced for state in states)
        self._fork = fork
        self._is_joined = False

    def __iadd__(self, expr: Any) -> Self:
        """Record in every fork: the same expression, one each from a list, or ``fn(i)`` for fork ``i``."""
        if is_list(expr):
            return super().__iadd__(list(entries_of(expr)))
        if isinstance(expr, Abstract):
            return super().__iadd__([expr] * len(self))
        return super().__iadd__(expr)

    def join(self, mode: str = "gather_variable", *, errors: str = "raise") -> None:
        """Record that the forks come back; what they set is then a list in the parent, one entry for each fork."""
        recorder = self._stream.recorder
        self._stream.check_constant(mode, "join(...) as mode")
        self._stream.check_constant(errors, "join(...) as errors")
        check_join(mode, errors)
        if self._is_joined:
            raise recorder.refusals.refuse("forks are joined a second time", "Join them once.")
        if errors == "raise":
            recorder.check_uncaught("forks are joined")
        for child in self._children:
            child.close()
        self._is_joined = True
        names = tuple(dict.fromkeys(name for child in self._children for name in child.defined))
        if names or mode == "concate_and_append":
            self._stream.check_open()
        join = recorder.record(self._stream.id, Join(self._fork, mode, errors))
        if mode == "gather_variable":
            for name in names:
                self._gather(join, name, errors)
        else:
            self._append(errors)

    async def ajoin(self, mode: str = "gather_variable", *, errors: str = "raise") -> None:
        """The same as ``join``; a trace waits for nothing."""
        self.join(mode, errors=errors)

    def _gather(self, join: int, name: str, errors: str) -> None:
        recorder = self._stream.recorder
        entries: list[Any] = []
        for index, child in enumerate(self._children):
            if errors == "keep":
                source = JoinedValue(join, name, index)
                entries.append(recorder.value(source, f"entry {index} of variable {name!r}", f's["{name}"][{index}]'))
            else:
                entries.append(child.find(name)[1] if name in child.defined else None)
        origin = Origin(NodeValue(join, name), f"variable {name!r}", f's["{name}"]', recorder.refusals)
        self._stream.define(name, AbstractList(entries, origin))

    def _append(self, errors: str) -> None:
        for child in self._children:
            if errors == "keep" and not child.leaves_turn_as_it_was:
                raise self._stream.recorder.refusals.refuse(
                    'join("concate_and_append", errors="keep") appends forks that open or close a turn, and which of them '
                    "succeed is not known",
                    "Open and close turns inside each fork.",
                )
            self._stream.take_turns_of(child)


class _Block(contextlib.AbstractContextManager[None]):
    """A ``with`` block that records a node at each end."""

    def __init__(self, stream: TracedStream, begin: Expr, end: Expr) -> None:
        self._stream = stream
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._stream.submit((self._begin,))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None and is_handed_to_c_code(error):  # now, before the end of the block is recorded
            self._stream.recorder.refuse_c_code(error)
        self._stream.submit((self._end,))


class _Host:
    """What ``lowering`` needs of a trace, at one state of it."""

    def __init__(self, state: TracedState) -> None:
        self._stream = state.traced

    def call(self, call: Call) -> AbstractValue:
        return self._stream.recorder.call(self._stream.id, call)

    def state(self, state: ProgramState) -> NoReturn:  # noqa: ARG002
        raise self.refuse("a state is given to host code or a variable", "Give it the values that it needs.")

    def refuse(self, what: str, cure: str) -> Any:
        return self._stream.recorder.refusals.refuse(what, cure)


def _again(value: Any, leaf: Any, recorder: Recorder) -> Any:
    """What reading a variable gives that was set to ``value``; text that was added up is added up once."""
    return recorder.value(leaf, "text made of values", "text") if is_text(value) else value

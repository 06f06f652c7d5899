"""A stream of a program that is traced: the checks of a real one, and nodes instead of doing anything.

``traced_state`` is its face. It owns what a stream of the interpreter owns besides its position: variables, the open turn,
and the numbers that make names and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sgl_core.language.abstract import Abstract, option_cure, origin_of
from sgl_core.language.graph import GetForkItem, StreamBegin, StreamKind
from sgl_core.language.ir import Argument, ArgumentValue, Expr, Fork, Gen, RoleBegin, RoleEnd, ScopeEnd, Select, Value, Variable
from sgl_core.language.joining import stream_closed
from sgl_core.language.reasoning import reasoning_name
from sgl_core.language.recorder import Recorder
from sgl_core.language.turns import role_after
from sgl_core.language.variables import automatic_name

__all__ = ["TracedStream"]


class TracedStream:
    """See the module.

    Args:
        recorder: of the trace.
        id: in the graph.
        path: as in the interpreter.
        inherited: what the parent had defined; never changed.
        open_role: the turn that is open at its start.

    Attributes:
        defined: names set by this stream itself, in order, automatic ones left out.
    """

    __slots__ = (
        "_first_turn",
        "_inherited",
        "_is_closed",
        "_num_children",
        "_num_generations",
        "_open_role",
        "_own",
        "_path",
        "_start_role",
        "defined",
        "id",
        "recorder",
    )

    def __init__(
        self,
        recorder: Recorder,
        id: int = 0,  # noqa: A002  (its name in the graph)
        path: tuple[int, ...] = (),
        inherited: Mapping[str, Any] = MappingProxyType({}),
        open_role: str | None = None,
    ) -> None:
        """Nothing is recorded yet."""
        self.recorder = recorder
        self.id = id
        self.defined: dict[str, None] = {}
        self._path = path
        self._own: dict[str, Any] = {}
        self._inherited = inherited
        self._start_role = self._open_role = open_role
        self._first_turn: Expr | None = None
        self._is_closed = False
        self._num_generations = 0
        self._num_children = 0

    # ---- writing -----------------------------------------------------------------------------------------------------
    def submit(self, nodes: Iterable[Expr]) -> None:
        """Record nodes.

        Raises:
            StreamClosedError: it was joined.
            ProgramError: a turn is opened inside another, or closed that is not open; nothing was recorded.
            TraceError: an option is a value of the trace.
        """
        nodes = tuple(nodes)
        self.check_open()
        after = role_after(self._open_role, nodes)
        for node in nodes:
            self._check_node(node)
        self._open_role = after
        for node in nodes:
            self._record(node)

    def define(self, name: str, value: Any, *, is_automatic: bool = False) -> None:
        """Set a variable to a value of the trace, or a plain one."""
        self._own[name] = value
        if not is_automatic:
            self.defined[name] = None

    def fork(self, number: int) -> tuple[tuple[TracedStream, ...], int]:
        """The streams of a fork, and the id of its node."""
        self.check_open()
        fork = self.recorder.record(self.id, Fork(number))
        variables = self._snapshot()
        children = tuple(self._child(StreamKind.FORK, variables, self._open_role) for _ in range(number))
        for index, child in enumerate(children):
            self.recorder.record(child.id, GetForkItem(fork, index))
        return children, fork

    def call(self, function: str) -> TracedStream:
        """The stream of a function that is called inside the program."""
        child = self._child(StreamKind.CALL, MappingProxyType({}), None)
        self.recorder.record(child.id, StreamBegin(function))
        return child

    def close(self) -> None:
        """Refuse further nodes."""
        self._is_closed = True

    def check_open(self) -> None:
        """Refuse to write to a stream that was joined or left.

        Raises:
            StreamClosedError: it was.
        """
        if self._is_closed:
            raise stream_closed()

    # ---- joining -----------------------------------------------------------------------------------------------------
    @property
    def leaves_turn_as_it_was(self) -> bool:
        """Whether appending its text elsewhere neither opens a turn nor closes one."""
        return self._open_role == self._start_role

    def take_turns_of(self, child: TracedStream) -> None:
        """What ``child`` did to the open turn happens here once more, as its text is appended.

        Raises:
            ProgramError: it closes what is not open here, or opens a turn inside another.
        """
        if child._first_turn is None:
            return
        role_after(self._open_role, (child._first_turn,))  # what follows it was checked when the child did it
        self._first_turn = self._first_turn or child._first_turn
        self._open_role = child._open_role

    # ---- reading -----------------------------------------------------------------------------------------------------
    def find(self, name: str) -> tuple[bool, Any]:
        """Whether a variable is defined, and the newest value."""
        for variables in (self._own, self._inherited):
            if name in variables:
                return True, variables[name]
        return False, None

    def names(self) -> list[str]:
        """The variables that have a name, sorted."""
        variables = {**self._inherited, **self._own}
        return sorted(name for name, value in variables.items() if not self.recorder.is_automatic(name, value))

    # ---- recording ---------------------------------------------------------------------------------------------------
    def _record(self, node: Expr) -> None:
        match node:
            case Gen() | Select():
                self._record_generation(node)
            case ScopeEnd(name=name):
                self.define(name, self.recorder.variable(self.recorder.record(self.id, node), name))
            case RoleBegin() | RoleEnd():
                self._first_turn = self._first_turn or node
                self.recorder.record(self.id, node)
            case _:
                self.recorder.record(self.id, node)

    def _record_generation(self, node: Gen | Select) -> None:
        index = self._num_generations
        self._num_generations += 1
        is_automatic = node.name is None
        name = node.name or automatic_name(index)
        named = replace(node, name=name) if is_automatic else node
        id_ = self.recorder.record(self.id, named, index=index, is_automatic=is_automatic)
        is_number = isinstance(node, Gen) and node.dtype is not str
        self.define(name, self.recorder.variable(id_, name, is_number=is_number), is_automatic=is_automatic)
        if isinstance(node, Gen) and node.reasoning is not None:
            self.define(reasoning_name(name), self.recorder.variable(id_, reasoning_name(name)), is_automatic=is_automatic)

    def _child(self, kind: StreamKind, variables: Mapping[str, Any], role: str | None) -> TracedStream:
        path = (*self._path, self._num_children)
        self._num_children += 1
        return TracedStream(self.recorder, self.recorder.begin_stream(kind, path, self.id), path, variables, role)

    def _snapshot(self) -> Mapping[str, Any]:
        """The variables as they are now, for all forks together; only a stream with new ones makes a new table."""
        if self._own:
            self._inherited = {**self._inherited, **self._own}
            self._own = {}
        return self._inherited

    # ---- checks ------------------------------------------------------------------------------------------------------
    def _check_node(self, node: Expr) -> None:
        match node:
            case Gen(options=options):
                for option, given in options.items():
                    self._check_constant(given, "gen", option)
            case Select(choices=choices):
                self._check_constant(choices, "select", "choices")
            case Argument(name=name):
                self._check_text(ArgumentValue(name))
            case Variable(source=source):
                self._check_text(source)

    def _check_text(self, source: Value) -> None:
        if self.recorder.may_not_be_text(source):
            self.recorder.check_uncaught("a value is appended that may be no text")

    def _check_constant(self, given: Any, function: str, option: str) -> None:
        for item in given if type(given) in (list, tuple) else (given,):
            if isinstance(item, Abstract):
                self.check_constant(item, f"{function}(...) as {option}")

    def check_constant(self, given: Any, what: str) -> None:
        """Refuse a value where a graph needs a constant.

        Raises:
            TraceError: ``given`` is a value of the trace.
        """
        if isinstance(given, Abstract):
            origin = origin_of(given)
            raise self.recorder.refusals.refuse(
                f"{origin.described} is given to {what}, which must be known when the program is compiled",
                option_cure(origin),
                argument=origin.argument,
            )

"""What a trace writes down: nodes in program order, streams, and which values the body has read.

Owned by one ``Tracer``; the traced states of its program write to it.
"""

from __future__ import annotations

import asyncio
import threading
from types import CodeType, FrameType
from typing import Any

from sgl_core.errors import ProgramError
from sgl_core.language.abstract import Abstract, AbstractValue, Origin, Refusals, is_value, source_of
from sgl_core.language.catching import frame_that_catches
from sgl_core.language.graph import Call, GraphNode, GraphStream, Place, Read, StreamKind
from sgl_core.language.identity import IdentityTest, identity_tests
from sgl_core.language.ir import ArgumentValue, Expr, Gen, NodeValue, Value
from sgl_core.language.lowering import copied, is_same_tree
from sgl_core.language.places import is_user_code, place_of, user_frame

__all__ = ["Recorder"]


class Recorder:
    """See the module.

    Args:
        program: name of the traced function.
        base: code of the function that starts the body; what stands around it is not the program's.
        is_async: the body runs on an event loop of its own.

    Attributes:
        refusals: what was refused; from the first one on nothing more is recorded.
    """

    def __init__(self, program: str, base: CodeType, *, is_async: bool) -> None:
        """Nothing but the root stream."""
        self.refusals = Refusals(program, self.end)
        self._base = base
        self._is_async = is_async
        self._lock = threading.Lock()
        self._nodes: list[GraphNode] = []
        self._streams = [GraphStream(0, StreamKind.ROOT, (), None)]
        self._num_kept: tuple[int, int] | None = None  # nodes and streams, once it has ended
        self._read: set[Value] = set()
        self._watched: list[tuple[str, Any, Any]] = []
        self._places: dict[tuple[CodeType, int], Place] = {}

    def end(self) -> None:
        """Keep nothing of what comes from now on."""
        with self._lock:
            if self._num_kept is None:
                self._num_kept = len(self._nodes), len(self._streams)

    @property
    def nodes(self) -> tuple[GraphNode, ...]:
        """The nodes in program order; an id is an index."""
        return tuple(self._nodes if self._num_kept is None else self._nodes[: self._num_kept[0]])

    @property
    def streams(self) -> tuple[GraphStream, ...]:
        """The streams by id."""
        return tuple(self._streams if self._num_kept is None else self._streams[: self._num_kept[1]])

    # ---- recording ---------------------------------------------------------------------------------------------------
    def record(self, stream: int, op: Expr, *, index: int = 0, is_automatic: bool = False) -> int:
        """Add a node.

        Raises:
            ProgramError: the trace is over, and somebody still holds a state of it.
        """
        if self._num_kept is not None and self.refusals.first is None:
            raise ProgramError("this state belongs to a trace that has ended; a program must not keep its state")
        frame = user_frame()
        if frame is not None:
            self._check_identity(frame, op)
        place = None if frame is None else self._place_of(frame)
        with self._lock:
            node = GraphNode(len(self._nodes), stream, op, index, place, is_automatic)
            self._nodes.append(node)
            return node.id

    def begin_stream(self, kind: StreamKind, path: tuple[int, ...], parent: int) -> int:
        """Add a stream; its first node is to follow."""
        with self._lock:
            self._streams.append(GraphStream(len(self._streams), kind, path, parent))
            return len(self._streams) - 1

    def read(self, stream: int, origin: Origin) -> None:
        """The body reads a variable of ``stream``; only the first time counts, as it has succeeded then."""
        source = origin.source
        if not isinstance(source, NodeValue) or source in self._read or isinstance(self._nodes[source.node].op, Call):
            return
        self.check_uncaught(f"{origin.shown} is read")
        self._read.add(source)
        self.record(stream, Read(source))

    def _place_of(self, frame: FrameType) -> Place:
        key = (frame.f_code, frame.f_lasti)
        if key not in self._places:  # a line of a loop is looked up once
            self._places[key] = place_of(frame, frame.f_lineno)
        return self._places[key]

    def watch(self, name: str, value: Any) -> None:
        """Variable ``name`` was set to this; ``check_unchanged`` asks whether it is still the same."""
        if type(value) in (list, dict, tuple):
            self._watched.append((name, value, copied(value)))

    # ---- what it checks ----------------------------------------------------------------------------------------------
    def check_uncaught(self, what: str) -> None:
        """Refuse to go on where the author's code would catch what fails here at run time.

        Raises:
            TraceError: it would.
        """
        found = frame_that_catches(self._base, is_async=self._is_async and _is_on_a_loop())
        if found is not None:
            frame, catcher = found
            raise self.refusals.refuse(
                f"{what} inside {catcher}, and a compiled program does not fail there",
                'Catch errors around run(...), keep those of forks with join(errors="keep"), or compile with fallback=True.',
                place=place_of(frame, frame.f_lineno),
            )

    def _check_identity(self, frame: FrameType, op: Expr) -> None:
        """Refuse that the function which runs asks for the identity of a value: that cannot be answered now."""
        for test in identity_tests(frame.f_code):
            value = frame.f_locals.get(test.name)
            if isinstance(value, Abstract):
                may_hold = self._may_hold(value, test)
            else:
                may_hold = not test.name and test.first_line <= frame.f_lineno <= test.last_line and self._gives_any(op)
            if may_hold:
                raise self.refusals.refuse(
                    "a value is tested with is, type(...) or a pattern before it is there",
                    "Decide in host code: sgl.call(fn, value). Arguments can be fixed: "
                    f"{self.refusals.program}.compile(static={{...}}); for a variable compile with fallback=True.",
                    place=place_of(frame, test.first_line),
                )

    def _may_hold(self, value: Abstract, test: IdentityTest) -> bool:
        """Whether the test could find the value; an argument is never None, True or False, which are made static."""
        if not test.is_of_constant:
            return True
        source = source_of(value) if is_value(value) else None
        return source is not None and not isinstance(source, ArgumentValue) and self.may_not_be_text(source)

    def _gives_any(self, op: Expr) -> bool:
        """Whether a node that is recorded now stands for a value that can be any object."""
        return isinstance(op, Call) or (isinstance(op, Read) and self.may_not_be_text(op.source))

    def check_unchanged(self) -> None:
        """Refuse that a list or dict was changed after a variable had been set to it: the graph has it as it was.

        Raises:
            TraceError: for the first one.
        """
        for name, value, before in self._watched:
            if not is_same_tree(value, before):
                what = f'the {type(value).__name__} that s["{name}"] was set to was changed afterwards'
                raise self.refusals.refuse(what, "Set the variable when it is complete, or to a new one.")

    def refuse_c_code(self, error: BaseException) -> None:
        """Refuse what C code said that was given a value; see ``is_handed_to_c_code``."""
        frame, line = _last_user_line(error)
        what = f"a value is handed to code that needs it at once ({error})"
        cure = (
            "Write text + value to append it, or use host code: sgl.call(fn, value). Arguments can be fixed: "
            f"{self.refusals.program}.compile(static={{...}})."
        )
        if str(error).startswith("sequence item "):  # what str.join says
            what = "str.join needs texts, and some of these have no value yet"
            cure = 'Use host code: sgl.call("\\n".join, values).'
        self.refusals.refuse(what, cure, place=None if frame is None else place_of(frame, line))

    def may_not_be_text(self, source: Value) -> bool:
        """Whether appending a value can fail because it is no text."""
        if isinstance(source, NodeValue):
            op = self._nodes[source.node].op
            return isinstance(op, Call) or (isinstance(op, Gen) and op.dtype is not str)
        return True

    def is_automatic(self, name: str, value: Any) -> bool:
        """Whether a variable has the name and the value of a generation that its author gave no name."""
        source = source_of(value) if is_value(value) else None
        return isinstance(source, NodeValue) and source.name == name and self._nodes[source.node].is_automatic

    # ---- making values -----------------------------------------------------------------------------------------------
    def value(self, source: Value, described: str, shown: str, *, is_number: bool = False) -> AbstractValue:
        """A value of this trace."""
        return AbstractValue(Origin(source, described, shown, self.refusals, is_number))

    def argument(self, name: str) -> AbstractValue:
        """The value of an argument."""
        return self.value(ArgumentValue(name), f"argument {name!r}", name)

    def variable(self, node: int, name: str, *, is_number: bool = False) -> AbstractValue:
        """The value of a variable that a node defines."""
        return self.value(NodeValue(node, name), f"variable {name!r}", f's["{name}"]', is_number=is_number)

    def call(self, stream: int, call: Call) -> AbstractValue:
        """Add a call of host code; its result."""
        self.check_uncaught("sgl.call(...) stands")
        name = getattr(call.fn, "__name__", type(call.fn).__name__)
        return self.value(NodeValue(self.record(stream, call)), f"the result of sgl.call({name}, ...)", "result")


def _last_user_line(error: BaseException) -> tuple[FrameType | None, int]:
    """The innermost line of the author's that an error has passed through."""
    found: FrameType | None = None
    line = 0
    step = error.__traceback__
    while step is not None:
        if is_user_code(step.tb_frame):
            found, line = step.tb_frame, step.tb_lineno
        step = step.tb_next
    return found, line


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

"""Runs a graph: every stream of it becomes a ``StreamExecutor``, and everything is submitted at once, without waiting.

Streams run ahead as far as their data lets them. What the interpreter would wait for in the program's body is a *checkpoint*:
a value that is read, a join, host code. The body's checkpoints are passed one after another, in program order, and the first
that fails is the body's error, as it is in the interpreter, however far the streams have got; nodes behind it that have not
run are not run. So no thread is needed for a body, and none per argument set of a batch. Called by ``compiled``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.dispatcher import post
from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Read,
    SetVar,
    StreamBegin,
    StreamState,
    leaves,
    map_leaves,
)
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    ConstantText,
    Expr,
    Fork,
    Gen,
    JoinedValue,
    NodeValue,
    Value,
    Variable,
    as_nodes,
)
from sgl_core.language.joining import appended_nodes, defined_names, first_error, gather, when_all
from sgl_core.language.places import warn_of_special_spellings
from sgl_core.language.run import CURRENT_STATE, ProgramRun
from sgl_core.language.state import ProgramState
from sgl_core.language.stream import StreamExecutor
from sgl_core.language.variables import VariableFuture

__all__ = ["GraphRun", "Plan"]

RunCall = Callable[[Callable[[], None]], None]
"""Runs host code somewhere else than on the dispatcher's thread, soon."""
OnEnd = Callable[[BaseException | None], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of a graph have in common.

    Args:
        graph: a verified graph.
        forks: the streams of each Fork, by its id and in order.
        shared: generations whose result another one takes: their names by id.
        written: the texts as their author wrote them, before any pass put some together.
    """

    graph: Graph
    forks: Mapping[int, tuple[GraphStream, ...]]
    shared: Mapping[int, str]
    written: tuple[GraphNode, ...]

    @classmethod
    def of(cls, graph: Graph, traced: Graph) -> Plan:
        """Read the graph once, and the one that it was made of."""
        forks: dict[int, list[GraphStream]] = {node.id: [] for node in graph.nodes if isinstance(node.op, Fork)}
        for node in graph.nodes:
            if isinstance(node.op, GetForkItem):
                forks[node.op.fork].append(graph.streams[node.stream])
        originals = {node.same_as for node in graph.nodes}
        shared = {node.id: node.op.name or "" for node in graph.nodes if node.id in originals and isinstance(node.op, Gen)}
        written = tuple(node for node in traced.nodes if isinstance(node.op, ConstantText))
        return cls(graph, {fork: tuple(streams) for fork, streams in forks.items()}, shared, written)


class GraphRun:
    """One run of a graph.

    Args:
        plan: of the graph.
        run: its backend, seed and defaults; the graph's root stream is this run's.
        arguments: a value for each of the graph's parameters.
        run_call: where host code runs.
        on_end: called once, on the dispatcher's thread, when the body has ended, with what failed it or None.
        context: whose context variables host code sees and sets; None: those of the thread that it runs in.
    """

    def __init__(
        self,
        plan: Plan,
        run: ProgramRun,
        arguments: Mapping[str, Any],
        run_call: RunCall,
        on_end: OnEnd,
        *,
        context: Context | None = None,
    ) -> None:
        """Submit nothing yet."""
        self._plan = plan
        self._run = run
        self._context = context
        self._body = _Body(run, run_call, on_end)
        self._streams: dict[int, StreamExecutor] = {0: run.root}
        self._values: dict[Value, VariableFuture] = {
            ArgumentValue(name): VariableFuture.of(name, value) for name, value in arguments.items()
        }

    def start(self) -> None:
        """Submit every node; never blocks."""
        for node in self._plan.written:
            self._warn(node)
        for order, node in enumerate(self._plan.graph.nodes):
            self._submit(order, node)
        self._body.begin()

    def returned(self) -> Any:
        """What the body returns; once it has ended without an error."""
        return map_leaves(self._returned_leaf, self._plan.graph.returns)

    # ---- nodes -------------------------------------------------------------------------------------------------------
    def _submit(self, order: int, node: GraphNode) -> None:
        match node.op:
            case GetForkItem():
                pass  # the Fork has started it
            case StreamBegin():
                stream = StreamExecutor(self._run, self._plan.graph.streams[node.stream].path)
                self._streams[node.stream] = stream
                stream.begin()
            case Fork():
                forked = self._plan.forks[node.id]
                children = self._streams[node.stream].fork_traced(node, order, [stream.path for stream in forked])
                self._streams.update((stream.id, child) for stream, child in zip(forked, children, strict=True))
            case Argument(name=name):
                self._submit_argument(order, node, name)
            case Variable(source=source):
                text = self._text(node, self._future(source))
                self._body.add(order, text)
                self._streams[node.stream].submit_traced(node, order, awaits=text)
            case Read(source=source):
                self._body.add(order, self._future(source))
            case Join() as join:
                self._submit_join(order, node, join)
            case Call() as call:
                self._submit_call(order, node, call)
            case SetVar(name=name, value=value):
                self._streams[node.stream].define(self._tree(name, value))
            case Gen() as gen if node.same_as is not None and self._run.is_greedy(gen.options):
                twin = self._values[NodeValue(node.same_as, self._plan.shared[node.same_as])]
                self._submit_to_stream(order, node, twin)
            case _:
                self._submit_to_stream(order, node, None)

    def _submit_to_stream(self, order: int, node: GraphNode, awaits: VariableFuture | None) -> None:
        futures = self._streams[node.stream].submit_traced(node, order, awaits=awaits)
        self._values.update((NodeValue(node.id, future.name), future) for future in futures)

    def _submit_argument(self, order: int, node: GraphNode, name: str) -> None:
        text = self._text(node, self._values[ArgumentValue(name)])
        if text.error is not None:
            self._body.add(order, text)
            failing = replace(node, op=Variable(ArgumentValue(name)))
            self._streams[node.stream].submit_traced(failing, order, awaits=text)
        else:
            self._streams[node.stream].submit_traced(replace(node, op=ConstantText(text.result())), order)

    def _submit_join(self, order: int, node: GraphNode, join: Join) -> None:
        streams = [self._streams[stream.id] for stream in self._plan.forks[join.fork]]
        parent = self._streams[node.stream]
        joined = VariableFuture("")
        gathered: list[VariableFuture] = []
        if join.mode == "gather_variable":
            gathered = [VariableFuture(name) for name in defined_names(streams)]
            for future in gathered:
                parent.define(future)
                self._values[NodeValue(node.id, future.name)] = future
        else:
            parent.submit_traced(node, order, awaits=joined)
        for stream in streams:
            stream.close()
        self._body.add(order, joined)
        bring_back = partial(_bring_back, streams, join, gathered, joined)
        made = [stream.find(name) for stream in streams for name in stream.defined]  # some are set to values to come
        when_all(iter([*(stream.barrier() for stream in streams), *(one for one in made if one is not None)]), bring_back)

    def _submit_call(self, order: int, node: GraphNode, call: Call) -> None:
        future = VariableFuture("")
        self._values[NodeValue(node.id)] = future

        def run() -> None:
            try:
                args = map_leaves(self._value, list(call.args))
                kwargs = map_leaves(self._value, dict(call.kwargs))
                value = self._called(call.fn, args, kwargs)
            except BaseException as error:  # whoever waits for the body gets it
                future.fail(error)
            else:
                future.resolve(value, None)

        self._body.add(order, future, run)

    def _called(self, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        # The context is left again before anybody hears of the value: the next call may come from another thread.
        if self._context is None:
            return _outside_programs(fn, args, kwargs)
        return self._context.run(_outside_programs, fn, args, kwargs)

    # ---- values ------------------------------------------------------------------------------------------------------
    def _future(self, source: Value) -> VariableFuture:
        if isinstance(source, JoinedValue):
            joined = self._values[NodeValue(source.node, source.name)]
            return _derived(joined, lambda entries: entries[source.index])
        return self._values[source]

    def _value(self, leaf: Any) -> Any:
        return self._future(leaf).result() if isinstance(leaf, Value) else leaf

    def _returned_leaf(self, leaf: Any) -> Any:
        return ProgramState(self._run, self._streams[leaf.stream]) if isinstance(leaf, StreamState) else self._value(leaf)

    def _tree(self, name: str, tree: Any) -> VariableFuture:
        """A variable whose value is a tree of values."""
        sources = [self._future(leaf) for leaf in leaves(tree) if isinstance(leaf, Value)]
        future = VariableFuture(name)

        def resolve() -> None:
            error = next((source.error for source in sources if source.error is not None), None)
            if error is not None:
                future.fail(error)
            else:
                future.resolve(map_leaves(self._value, tree), None)

        when_all(iter(sources), resolve)
        return future

    def _text(self, node: GraphNode, source: VariableFuture) -> VariableFuture:
        """The value as the text that is appended; what is no text is the error that appending it raises."""

        def as_text(value: Any) -> str:
            try:
                nodes = as_nodes(value)
            except InvalidArgumentError as error:
                error.add_note(f"{_described(node)} is appended at {node.place}")
                raise
            if len(nodes) != 1 or not isinstance(nodes[0], ConstantText):
                raise _not_text(node, value)
            self._warn(replace(node, op=nodes[0]))
            return nodes[0].text

        return _derived(source, as_text)

    def _warn(self, node: GraphNode) -> None:
        warn_of_special_spellings((node.op,), self._run.codec, node.place)


class _Body:
    """The checkpoints of a body, passed in order. ``add`` before ``begin``; everything else on the dispatcher's thread."""

    def __init__(self, run: ProgramRun, run_call: RunCall, on_end: OnEnd) -> None:
        self._run = run
        self._run_call = run_call
        self._on_end = on_end
        self._checkpoints: deque[tuple[int, VariableFuture, Callable[[], None] | None]] = deque()

    def add(self, order: int, future: VariableFuture, call: Callable[[], None] | None = None) -> None:
        """The body may not go on before ``future``; ``call`` makes it, once the body is there."""
        self._checkpoints.append((order, future, call))

    def begin(self) -> None:
        post(self._advance)

    def _advance(self) -> None:
        while self._checkpoints:
            order, future, call = self._checkpoints[0]
            if not future.done():
                future.add_done_callback(lambda: post(self._advance))
                if call is not None:
                    self._start(call, future)
                return
            if future.error is not None:
                self._fail(order, future.error)
                return
            self._checkpoints.popleft()
        self._on_end(None)

    def _start(self, call: Callable[[], None], future: VariableFuture) -> None:
        try:
            self._run_call(call)
        except Exception as error:  # no more threads, say: the body must not wait for a call that nobody makes
            future.fail(error)

    def _fail(self, order: int, error: BaseException) -> None:
        self._run.stop(order, error)
        self._run.mark_seen(error)
        for _, future, call in self._checkpoints:
            if call is not None and not future.done():
                future.fail(error)
        self._checkpoints.clear()
        self._on_end(error)


def _outside_programs(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call host code, which is part of no program here, even if this one was started inside another."""
    token = CURRENT_STATE.set(None)
    try:
        return fn(*args, **kwargs)
    finally:
        CURRENT_STATE.reset(token)


def _bring_back(
    streams: Sequence[StreamExecutor], join: Join, gathered: Sequence[VariableFuture], joined: VariableFuture
) -> None:
    error = first_error(streams, join.errors)
    if error is not None:
        for future in (*gathered, joined):
            future.fail(error)
        return
    for future in gathered:
        values, meta = gather(streams, future.name)
        future.resolve(values, None, meta)
    joined.resolve(appended_nodes(streams) if join.mode == "concate_and_append" else (), "")


def _described(node: GraphNode) -> str:
    return f"argument {node.op.name!r}" if isinstance(node.op, Argument) else "a value"


def _not_text(node: GraphNode, value: Expr) -> InvalidArgumentError:
    """The error for an expression that comes in as a value: a graph has its nodes before it runs."""
    cure = "Use host code that returns text."
    if isinstance(node.op, Argument):
        cure = f'Fix it: compile(static={{"{node.op.name}": ...}}), or run the program interpreted.'
    expected = f"text, where a compiled program appends it ({node.place})"
    return InvalidArgumentError(_described(node), type(value).__name__, expected, cure)


def _derived(source: VariableFuture, compute: Callable[[Any], Any]) -> VariableFuture:
    """A value made of another one, with its error or one of its own."""
    future = VariableFuture(source.name)

    def resolve() -> None:
        if source.error is not None:
            future.fail(source.error)
            return
        try:
            value = compute(source.result())
        except Exception as error:
            future.fail(error)
        else:
            future.resolve(value, None)

    source.add_done_callback(resolve)
    return future

"""One stream of a program: a queue of nodes, run in order, at most one of them in flight.

``submit`` (any thread) only queues. The process's dispatcher runs the nodes: constants and turns at once, ``Gen`` and
``Select`` by handing the backend a request and going on when its handle calls back, and a node that needs a value which is
not there yet when that value calls back. A stream is therefore no thread, and costs little while it has nothing to do. It
owns its position and its table of variables.

The interpreter submits nodes as the program's body writes them (``submit``), the executor of a compiled program those of a
graph (``submit_traced``); what happens to a node is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sgl_core.backend import Handle
from sgl_core.errors import ProgramError
from sgl_core.language.dispatcher import post
from sgl_core.language.generating import GenTask, Pending, start_select
from sgl_core.language.graph import GraphNode, Join
from sgl_core.language.ir import (
    AdaptiveGen,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    TokenIds,
    Variable,
)
from sgl_core.language.joining import stream_closed
from sgl_core.language.listening import Listeners
from sgl_core.language.position import Piece, Position, Trail, pieces_since, text_of
from sgl_core.language.reasoning import reasoning_name
from sgl_core.language.requests import refuse_image
from sgl_core.language.turns import role_after
from sgl_core.language.variables import Put, VariableFuture, VariableTable, automatic_name
from sgl_core.types import Hints, PrefetchRequest, PrefetchResult

if TYPE_CHECKING:
    from sgl_core.language.run import ProgramRun

__all__ = ["PREFETCH_DEADLINE_S", "StreamExecutor"]

_EMPTY: Final = Position()
_UNORDERED: Final = -1
PREFETCH_DEADLINE_S: Final = 60.0
"""After that long a program that still has not used its prefix is slower than anything a prefetch could save."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A queued node (None: a barrier).

    Args:
        node: what to do.
        index: of a Gen or Select, which of its stream's it is.
        defines: the variable that it makes; ``reasoning`` the second one of a Gen that keeps reasoning apart.
        awaits: not before this is done: what a Variable appends, a Join brings back, or a shared generation makes.
        children: streams that a Fork starts.
        order: place in the program order of a graph; nodes of a running body have none.
        traced: of a graph, with what the passes noted.
    """

    node: Expr | None
    index: int = 0
    defines: VariableFuture | None = None
    reasoning: VariableFuture | None = None
    awaits: VariableFuture | None = None
    children: tuple[StreamExecutor, ...] = ()
    order: int = _UNORDERED
    traced: GraphNode | None = None


class StreamExecutor:
    """Runs nodes in order.

    Args:
        run: the program run it belongs to.
        path: fork and call indices from the root; makes seeds.
        variables: what the parent had defined.
        open_role: the turn that is open at its start.
        siblings: forks that start after it.
    """

    __slots__ = (
        "_authored_len",
        "_error",
        "_fork_len",
        "_head",
        "_in_flight",
        "_is_busy",
        "_is_closed",
        "_listeners",
        "_lock",
        "_num_awaited",
        "_num_children",
        "_num_generations",
        "_open_role",
        "_origin",
        "_position",
        "_queue",
        "_requested_len",
        "_scopes",
        "_siblings",
        "_variables",
        "path",
        "run",
    )

    def __init__(
        self,
        run: ProgramRun,
        path: tuple[int, ...],
        *,
        variables: VariableTable | None = None,
        open_role: str | None = None,
        siblings: int = 0,
    ) -> None:
        """Wait for ``begin``; nodes may be submitted before."""
        self.run = run
        self.path = path
        self._variables = VariableTable(variables)
        self._open_role = open_role
        self._siblings = siblings
        self._lock = threading.Lock()
        self._queue: list[_Step] = []
        self._head = 0  # steps before it are gone
        self._is_busy = True  # until begin()
        self._is_closed = False
        self._num_generations = 0
        self._num_children = 0
        # Below: written by the dispatcher only.
        self._position = _EMPTY
        self._origin: Trail | None = None
        self._fork_len = 0  # settled tokens that it has in common with its siblings
        self._requested_len = 0  # tokens that a request of its history has had computed
        self._authored_len: int | None = None  # settled tokens before the first that a model chose; None: there is none
        self._error: BaseException | None = None
        self._scopes: dict[str, list[Trail | None]] | None = None
        self._in_flight: Pending | None = None
        self._num_awaited = 0
        self._listeners: Listeners | None = None
        run.register(self)

    # ---- for the program: any thread ---------------------------------------------------------------------------------
    @property
    def position(self) -> Position:
        """Where it stands; moves on unless ``barrier`` is done and nothing was submitted since."""
        return self._position

    @property
    def error(self) -> BaseException | None:
        """What failed it, if something did."""
        return self._error

    @property
    def defined(self) -> tuple[str, ...]:
        """Names that this stream itself has set, in order; automatic ones left out."""
        return self._variables.own_names()

    def own_pieces(self) -> list[Piece]:
        """What was appended since it began."""
        return pieces_since(self._position.trail, self._origin)

    def find(self, name: str) -> VariableFuture | None:
        """The newest definition of a variable, its own or inherited."""
        return self._variables.find(name)

    def variables(self) -> dict[str, VariableFuture]:
        """All variables that have a name, by name."""
        with self._lock:
            return self._variables.named()

    def define(self, future: VariableFuture) -> None:
        """Set a variable now.

        Raises:
            StreamClosedError: it was joined.
        """
        with self._lock:
            self._check_open()
            self._variables.define(future)
        self.run.announce()

    def submit(self, nodes: Iterable[Expr]) -> None:
        """Queue nodes; never blocks.

        Raises:
            StreamClosedError: it was joined.
            ProgramError: a turn is opened inside another, or closed that is not open; nothing was queued.
        """
        nodes = tuple(nodes)
        with self._lock:
            self._check_open()
            self._open_role = role_after(self._open_role, nodes)
            self._enqueue([self._step(node) for node in nodes])
        self.run.announce()

    def submit_traced(
        self,
        node: GraphNode,
        order: int,
        *,
        awaits: VariableFuture | None = None,
    ) -> tuple[VariableFuture, ...]:
        """Queue a node of a graph; never blocks.

        Args:
            node: of a verified graph.
            order: its place in the program.
            awaits: the value that it needs, if it needs one.

        Returns:
            The variables that it makes.
        """
        op = node.op
        with self._lock:
            self._open_role = role_after(self._open_role, (op,))
            if isinstance(op, Gen | Select):
                self._num_generations = node.index + 1
            defines, reasoning = self._define_for(op, node.index, is_automatic=node.is_automatic)
            step = _Step(
                op,
                node.index,
                defines=defines,
                reasoning=reasoning,
                awaits=awaits,
                order=order,
                traced=node,
            )
            self._enqueue([step])
        self.run.announce()
        return tuple(future for future in (defines, reasoning) if future is not None)

    def fork(self, number: int) -> tuple[StreamExecutor, ...]:
        """Start streams from here. They run when this one gets here; nothing is copied and nobody waits."""
        with self._lock:
            self._check_open()
            paths = [(*self.path, self._num_children + i) for i in range(number)]
            children = self._children(paths)
            self._enqueue([_Step(Fork(number), children=children)])
        return children

    def fork_traced(self, node: GraphNode, order: int, paths: list[tuple[int, ...]]) -> tuple[StreamExecutor, ...]:
        """Like ``fork``, for a node of a graph, with the paths that its streams have there."""
        with self._lock:
            children = self._children(paths)
            self._enqueue([_Step(node.op, children=children, order=order, traced=node)])
        return children

    def call(self) -> StreamExecutor:
        """A stream of its own that starts empty; for a function called inside a program."""
        with self._lock:
            path = (*self.path, self._num_children)
            self._num_children += 1
        child = StreamExecutor(self.run, path)
        child.begin()
        return child

    def barrier(self) -> VariableFuture:
        """Done when everything submitted so far is, failed or not; it has no value."""
        reached = VariableFuture("")
        with self._lock:
            if self._is_busy:
                self._enqueue([_Step(None, defines=reached)])
                return reached
        reached.resolve(None, "")
        return reached

    def close(self) -> None:
        """Refuse further nodes."""
        with self._lock:
            self._is_closed = True

    def listen(self, put: Put, *, is_live: bool) -> None:
        """Call ``put`` with the stream's text from its beginning, and with None when it has nothing more to do."""
        post(lambda: self._attach(put, is_live=is_live))

    # ---- queueing: under the lock ------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self._is_closed:
            raise stream_closed()

    def _enqueue(self, steps: list[_Step]) -> None:
        self._queue += steps
        if steps and not self._is_busy:
            self._is_busy = True
            post(self._pump)

    def _step(self, node: Expr) -> _Step:
        index = 0
        if isinstance(node, Gen | Select):
            index = self._num_generations
            self._num_generations += 1
        is_automatic = isinstance(node, Gen | Select) and node.name is None
        defines, reasoning = self._define_for(node, index, is_automatic=is_automatic)
        return _Step(node, index, defines=defines, reasoning=reasoning)

    def _define_for(self, node: Expr, index: int, *, is_automatic: bool) -> tuple[VariableFuture | None, VariableFuture | None]:
        """The variable that a node makes, if it makes one, and that of the reasoning which it keeps apart."""
        match node:
            case Gen(name=name) | Select(name=name):
                future = VariableFuture(name or automatic_name(index), is_automatic=is_automatic)
            case ScopeEnd(name=name):
                future = VariableFuture(name)
            case _:
                return None, None
        self._variables.define(future)
        if not isinstance(node, Gen) or node.reasoning is None:
            return future, None
        return future, self._variables.define(VariableFuture(reasoning_name(future.name)))

    def _children(self, paths: list[tuple[int, ...]]) -> tuple[StreamExecutor, ...]:
        self._num_children += len(paths)
        last = len(paths) - 1
        return tuple(
            StreamExecutor(self.run, path, variables=self._variables, open_role=self._open_role, siblings=last - i)
            for i, path in enumerate(paths)
        )

    # ---- running: the dispatcher's thread ----------------------------------------------------------------------------
    def begin(self, position: Position = _EMPTY, requested_len: int = 0, authored_len: int | None = None) -> None:
        """Start at ``position``; called once.

        Args:
            position: where the parent stands.
            requested_len: its tokens that a request of the parent had computed.
            authored_len: those before the first that a model chose; None if all were written.
        """
        self._position = position
        self._authored_len = authored_len
        self._origin = position.trail
        self._fork_len = position.ids.length
        self._requested_len = requested_len
        post(self._pump)

    def begin_failed(self, error: BaseException) -> None:
        """Start where the parent failed: every node ends with its error."""
        self._error = error
        post(self._pump)

    def abort(self) -> None:
        """Abort what is in flight; the run says why when the handles come back."""
        if self._in_flight is not None:
            for handle in self._in_flight.handles:
                handle.abort()

    def settle_listeners(self) -> None:
        """Let listeners go that nothing more will reach."""
        if self._listeners is None:
            return
        with self._lock:
            if self._is_busy:
                return
        self._listeners.settle(is_body_done=self.run.body_done.is_set())

    def _attach(self, put: Put, *, is_live: bool) -> None:
        self._listeners = self._listeners or Listeners()
        generating = None if self._in_flight is None else self._in_flight.future
        self._listeners.add(put, is_live=is_live, text=text_of(pieces_since(self._position.trail)), generating=generating)
        self.settle_listeners()

    def _pump(self) -> None:
        while (step := self._next()) is not None:
            if self._run_step(step):
                return
        self.settle_listeners()

    def _next(self) -> _Step | None:
        with self._lock:
            if self._head < len(self._queue):
                step = self._queue[self._head]
                self._head += 1
                return step
            self._queue.clear()
            self._head = 0
            self._is_busy = False
            return None

    def _run_step(self, step: _Step) -> bool:
        """Run a node or skip it; whether it is in flight now."""
        self._error = self._error or self.run.cancelled
        error = self._error or self.run.stopped_before(step.order)
        if error is not None:
            _skip(step, error)
            return False
        try:
            if step.awaits is not None and not step.awaits.done():
                step.awaits.add_done_callback(lambda: post(partial(self._resume, step)))
                return True
            return self._execute(step)
        except BaseException as raised:
            self._error = raised
            _skip(step, raised)
            return False

    def _resume(self, step: _Step) -> None:
        if not self._run_step(step):
            self._pump()

    def _execute(self, step: _Step) -> bool:
        """Run a node; whether it is in flight now."""
        codec, position = self.run.codec, self._position
        match step.node:
            case ConstantText(text=text):
                self._move(position.add_text(text))
            case RawText(text=text):
                self._move(position.add_raw(text, codec))
            case TokenIds(ids=ids, text=text, text_behind_ids=behind):
                settled = position.settled(codec)
                self._move(settled.add_generated(settled.ids, ids, text, behind))
            case Variable() if step.awaits is not None:
                if self._authored_len is None:
                    self._authored_len = position.ids.length
                self._move(position.add_text(step.awaits.result()))
            case RoleBegin(role=role):
                self._move(position.open_turn(role, codec))
            case RoleEnd(role=role):
                self._move(position.close_turn(role, codec))
            case ScopeBegin(name=name):
                self._scopes = self._scopes or {}
                self._scopes.setdefault(name, []).append(position.trail)
            case ScopeEnd(name=name) if step.defines is not None and self._scopes is not None:
                text = text_of(pieces_since(position.trail, self._scopes[name].pop()))
                step.defines.resolve(text, text)
            case Fork():
                return self._publish(step)
            case Gen() as node if step.defines is not None:
                return self._generate(step, node, step.defines)
            case Select() as node if step.defines is not None:
                self._await(step, start_select(self.run, position, node, self._hints(step), step.defines))
                return True
            case Join() if step.awaits is not None:
                for node in step.awaits.result():
                    self._execute(_Step(node))
            case Prefetch(min_tokens=min_tokens):
                self._prefetch(min_tokens, when_idle=True)
            case CommutativeMark():
                pass
            case Image():
                refuse_image(self.run.backend)
            case None if step.defines is not None:
                step.defines.resolve(None, "")
            case unknown:
                raise ProgramError(f"the interpreter cannot run a {type(unknown).__name__} node")
        return False

    def _move(self, position: Position) -> None:
        if self._listeners is not None:
            text = text_of(pieces_since(position.trail, self._position.trail))
            self._listeners.put(text)
        self._position = position

    def _publish(self, step: _Step) -> bool:
        """Let the children begin; whether what they share is computed first, as the graph says and the backend would not."""
        self._position.ids.flat()  # once here instead of once in every child
        committed = None
        if step.traced is not None and step.traced.commit and not self.run.backend.capabilities.shares_in_flight:
            committed = self._prefetch(1, when_idle=False)
        if committed is None:
            self._begin_children(step)
            return False
        committed.add_done_callback(partial(post, partial(self._committed, step)))
        return True

    def _committed(self, step: _Step) -> None:
        self._begin_children(step)
        self._pump()

    def _begin_children(self, step: _Step) -> None:
        for child in step.children:
            child.begin(self._position, self._requested_len, self._authored_len)
        self._requested_len = max(self._requested_len, self._position.ids.length)  # the children's requests begin with it

    def _prefetch(self, min_tokens: int, *, when_idle: bool) -> Handle[PrefetchResult] | None:
        """Ask for the text so far to be computed; a refusal changes nothing."""
        if not self.run.backend.capabilities.token_ids:
            return None
        try:
            ids = self._position.stable_ids(self.run.codec)
            if len(ids) - self._requested_len < min_tokens:
                return None
            request = PrefetchRequest(ids, self.run.namespace, timeout_s=PREFETCH_DEADLINE_S, when_idle=when_idle)
            handle = self.run.backend.prefetch(request)
        except Exception:  # whatever it is: the request that needs the text says what is wrong
            return None
        if not when_idle:
            self._requested_len = len(ids)
        return handle

    def _generate(self, step: _Step, node: Gen, future: VariableFuture) -> bool:
        params = self.run.params_for(self._options_of(node), self.path, step.index)
        task = GenTask(self.run, self._position, node, params, future, step.reasoning)
        twin = None if step.awaits is None else step.awaits.generation
        if twin is not None and params.temperature == 0:
            self._move(task.share(twin))
            return False
        self._await(step, task.start(self._hints(step)))
        return True

    def _options_of(self, node: Gen) -> Mapping[str, Any]:
        """The options of a generation, with those that an earlier variable decides."""
        if not isinstance(node, AdaptiveGen) or node.by is None:
            return node.options
        decided = self._variables.find(node.by)
        if decided is None or not decided.done() or decided.text not in node.cases:
            raise ProgramError(
                f"variable {node.by!r} decides nothing for {node.name!r}: it has no value, or one without options"
            )
        return {**node.options, **node.cases[decided.text]}

    def _hints(self, step: _Step) -> Hints:
        siblings, self._siblings = self._siblings, 0  # the first request of a fork announces the others
        last_use = step.traced is not None and step.traced.last_use
        shared_len = self._fork_len if siblings else 0
        return Hints(self.run.program_id, siblings, shared_len, last_use, self._authored_len if last_use else 0)

    def _await(self, step: _Step, pending: Pending) -> None:
        if self._listeners is not None:
            self._listeners.follow(pending.future)
        self._in_flight = pending
        self._num_awaited = len(pending.handles)
        for handle in pending.handles:
            handle.add_done_callback(partial(post, partial(self._arrived, step)))

    def _arrived(self, step: _Step) -> None:
        self._num_awaited -= 1
        pending = self._in_flight
        if self._num_awaited or pending is None:
            return
        self._in_flight = None
        try:
            self._position = pending.finish()
            if self._authored_len is None:
                self._authored_len = pending.prompt_len
            self._requested_len = self._position.ids.length
        except BaseException as error:
            self._error = error
            _skip(step, error)
        self._pump()


def _skip(step: _Step, error: BaseException) -> None:
    """End what a node would have brought about; a barrier is reached all the same."""
    for child in step.children:
        child.begin_failed(error)
    for future in (step.defines, step.reasoning):
        if future is None or future.done():
            continue
        if step.node is None:
            future.resolve(None, "")
        else:
            future.fail(error)

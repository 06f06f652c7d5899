"""One stream of a program: a queue of nodes, run in order, at most one of them in flight.

``submit`` (any thread) only queues. The process's dispatcher runs the nodes: constants and turns at once, ``Gen`` and
``Select`` by handing the backend a request and going on when its handle calls back. A stream is therefore no thread. It owns
its position and its table of variables.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sgl_core.backend import Handle
from sgl_core.errors import ProgramError, RequestAborted, StreamClosedError, VariableNotFoundError
from sgl_core.language.choices import ChoiceScores, decide
from sgl_core.language.dispatcher import post
from sgl_core.language.healing import GenPrompt, continued, prompt_of
from sgl_core.language.ir import (
    ConstantText,
    Expr,
    Fork,
    Gen,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.meta import gen_meta, select_meta
from sgl_core.language.position import Position, TokenRope, Trail, pieces_since, text_of
from sgl_core.language.requests import generation_request, score_requests
from sgl_core.language.sampling import read_as
from sgl_core.language.variables import VariableFuture
from sgl_core.spans import ChoiceSpans
from sgl_core.types import FinishReason, GenResult, Hints, SamplingParams, ScoreResult

if TYPE_CHECKING:
    from sgl_core.language.run import ProgramRun

__all__ = ["StreamExecutor"]

Put = Callable[[str | None], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A queued node (None: a barrier) with the variable it defines or reads, or the streams it starts."""

    node: Expr | None
    index: int = 0
    defines: VariableFuture | None = None
    reads: VariableFuture | None = None
    children: tuple[StreamExecutor, ...] = ()


@dataclass(slots=True, eq=False)
class _Listener:
    """Somebody who wants the stream's text as it comes; ``is_live``: until the program's body has ended."""

    put: Put
    is_live: bool


class StreamExecutor:
    """Runs nodes in order.

    Args:
        run: the program run it belongs to.
        path: fork and call indices from the root; makes seeds.
        variables: what the parent had defined.
        open_role: the turn that is open at its start.
        siblings: forks that start after it.
    """

    def __init__(
        self,
        run: ProgramRun,
        path: tuple[int, ...],
        *,
        variables: Mapping[str, VariableFuture] = MappingProxyType({}),
        open_role: str | None = None,
        siblings: int = 0,
    ) -> None:
        """Wait for ``begin``; nodes may be submitted before."""
        self.run = run
        self.path = path
        self.defined: dict[str, None] = {}  # names set by this stream itself, in order
        self._variables = dict(variables)
        self._open_role = open_role
        self._siblings = siblings
        self._lock = threading.Lock()
        self._queue: deque[_Step] = deque()
        self._is_busy = True  # until begin()
        self._is_closed = False
        self._num_generations = 0
        self._num_children = 0
        # Below: written by the dispatcher only.
        self._position = Position()
        self._origin: Trail | None = None
        self._fork_len = 0  # settled tokens that it has in common with its siblings
        self._error: BaseException | None = None
        self._scopes: dict[str, list[Trail | None]] = {}
        self._in_flight: tuple[Handle[Any], ...] = ()
        self._num_awaited = 0
        self._generating: VariableFuture | None = None
        self._listeners: list[_Listener] = []
        run.register(self)

    # ---- for the program: any thread ---------------------------------------------------------------------------------
    @property
    def position(self) -> Position:
        """Where it stands; moves on unless ``barrier`` is done and nothing was submitted since."""
        return self._position

    @property
    def origin(self) -> Trail | None:
        """Where it started."""
        return self._origin

    @property
    def error(self) -> BaseException | None:
        """What failed it, if something did."""
        return self._error

    def find(self, name: str) -> VariableFuture | None:
        """The newest definition of a variable, its own or inherited."""
        return self._variables.get(name)

    def variables(self) -> dict[str, VariableFuture]:
        """All variables that have a name, by name."""
        with self._lock:
            return {name: future for name, future in self._variables.items() if not future.is_automatic}

    def define(self, future: VariableFuture) -> None:
        """Set a variable now.

        Raises:
            StreamClosedError: it was joined.
        """
        with self._lock:
            self._check_open()
            self._define(future)
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
            self._open_role = _role_after(self._open_role, nodes)
            self._enqueue(self._step(node) for node in nodes)
        self.run.announce()

    def fork(self, number: int) -> tuple[StreamExecutor, ...]:
        """Start streams from here. They run when this one gets here; nothing is copied and nobody waits."""
        with self._lock:
            self._check_open()
            children = tuple(self._child(siblings=number - 1 - i, is_fork=True) for i in range(number))
            self._enqueue([_Step(Fork(number), children=children)])
        return children

    def call(self) -> StreamExecutor:
        """A stream of its own that starts empty; for a function called inside a program."""
        with self._lock:
            child = self._child(siblings=0, is_fork=False)
        child.begin(Position())
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
        post(lambda: self._attach(_Listener(put, is_live)))

    # ---- queueing: under the lock ------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self._is_closed:
            raise StreamClosedError("this stream has been joined or left; append to the state it was forked from")

    def _enqueue(self, steps: Iterable[_Step]) -> None:
        self._queue.extend(steps)
        if self._queue and not self._is_busy:
            self._is_busy = True
            post(self._pump)

    def _step(self, node: Expr) -> _Step:
        match node:
            case Gen(name=name) | Select(name=name):
                index = self._num_generations
                self._num_generations += 1
                future = VariableFuture(name or f"_unnamed_{index}", is_automatic=name is None)
                return _Step(node, index, defines=self._define(future))
            case ScopeEnd(name=name):
                return _Step(node, defines=self._define(VariableFuture(name)))
            case Variable(name=name):
                if name not in self._variables:
                    raise VariableNotFoundError(f"variable {name!r} is not defined in this stream")
                return _Step(node, reads=self._variables[name])
            case _:
                return _Step(node)

    def _define(self, future: VariableFuture) -> VariableFuture:
        self._variables[future.name] = future
        if not future.is_automatic:
            self.defined[future.name] = None
        return future

    def _child(self, *, siblings: int, is_fork: bool) -> StreamExecutor:
        index = self._num_children
        self._num_children += 1
        return StreamExecutor(
            self.run,
            (*self.path, index),
            variables=self._variables if is_fork else {},
            open_role=self._open_role if is_fork else None,
            siblings=siblings,
        )

    # ---- running: the dispatcher's thread ----------------------------------------------------------------------------
    def begin(self, position: Position) -> None:
        """Start at ``position``; called once."""
        self._position = position
        self._origin = position.trail
        self._fork_len = position.ids.length
        post(self._pump)

    def begin_failed(self, error: BaseException) -> None:
        """Start where the parent failed: every node ends with its error."""
        self._error = error
        post(self._pump)

    def abort(self) -> None:
        """Abort what is in flight; the run says why when the handles come back."""
        for handle in self._in_flight:
            handle.abort()

    def settle_listeners(self) -> None:
        """Let listeners go that nothing more will reach."""
        with self._lock:
            if self._is_busy:
                return
        ended = [listener for listener in self._listeners if not listener.is_live or self.run.body_done.is_set()]
        self._listeners = [listener for listener in self._listeners if listener not in ended]
        for listener in ended:
            listener.put(None)

    def _attach(self, listener: _Listener) -> None:
        listener.put(text_of(pieces_since(self._position.trail)))
        if self._generating is not None:
            self._generating.listen(_without_end(listener.put))
        self._listeners.append(listener)
        self.settle_listeners()

    def _pump(self) -> None:
        while (step := self._next()) is not None:
            self._error = self._error or self.run.cancelled
            if self._error is not None:
                _skip(step, self._error)
                continue
            try:
                is_in_flight = self._execute(step)
            except BaseException as error:
                self._fail(step, error)
                continue
            if is_in_flight:
                return
        self.settle_listeners()

    def _next(self) -> _Step | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._is_busy = False
            return None

    def _fail(self, step: _Step, error: BaseException) -> None:
        self._error = error
        _skip(step, error)

    def _execute(self, step: _Step) -> bool:
        """Run a node; whether it is in flight now."""
        codec, position = self.run.codec, self._position
        match step.node:
            case ConstantText(text=text):
                self._move(position.add_text(text))
            case RawText(text=text):
                self._move(position.add_raw(text, codec))
            case Variable() if step.reads is not None:
                self._move(position.add_text(str(step.reads.result())))
            case RoleBegin(role=role):
                self._move(position.open_turn(role, codec))
            case RoleEnd(role=role):
                self._move(position.close_turn(role, codec))
            case ScopeBegin(name=name):
                self._scopes.setdefault(name, []).append(position.trail)
            case ScopeEnd(name=name) if step.defines is not None:
                text = text_of(pieces_since(position.trail, self._scopes[name].pop()))
                step.defines.resolve(text, text)
            case Fork():
                self._publish(step.children)
            case Gen() as node if step.defines is not None:
                self._generate(step, node, step.defines)
                return True
            case Select() as node if step.defines is not None:
                self._select(step, node, step.defines)
                return True
            case None if step.defines is not None:
                step.defines.resolve(None, "")
            case unknown:
                raise ProgramError(f"the interpreter cannot run a {type(unknown).__name__} node")
        return False

    def _move(self, position: Position) -> None:
        if self._listeners:
            text = text_of(pieces_since(position.trail, self._position.trail))
            for listener in self._listeners:
                listener.put(text)
        self._position = position

    def _publish(self, children: tuple[StreamExecutor, ...]) -> None:
        self._position.ids.flat()  # once here instead of once in every child
        for child in children:
            child.begin(self._position)

    def _generate(self, step: _Step, node: Gen, future: VariableFuture) -> None:
        params = self.run.params_for(node.options, self.path, step.index)
        prompt = prompt_of(self._position, self.run.codec, node.heal, self.run.backend.capabilities)
        request = generation_request(self.run, self._position, prompt, params, self._hints())
        handle = self.run.backend.submit(request)
        future.start(handle)
        self._generating = future
        for listener in self._listeners:
            future.listen(_without_end(listener.put))
        self._await((handle,), step, partial(self._finish_generation, handle, node, future, prompt, params))

    def _finish_generation(
        self, handle: Handle[GenResult], node: Gen, future: VariableFuture, prompt: GenPrompt, params: SamplingParams
    ) -> None:
        self._generating = None
        result = handle.result(0)
        if result.finish_reason is FinishReason.ABORT:
            raise self.run.cancelled or RequestAborted(f"the request of variable {future.name!r} was aborted")
        self._position = continued(self._position, self.run.codec, prompt, result)
        if result.finish_reason is FinishReason.LENGTH and params.max_new_tokens is None:
            self.run.note_cut(future.name)
        meta = gen_meta(node, result, params.seed, self.run.codec)
        future.resolve(read_as(node.dtype, result.text), result.text, meta)

    def _select(self, step: _Step, node: Select, future: VariableFuture) -> None:
        planned = score_requests(self.run, self._position, node, self._hints())
        handles = tuple(self.run.backend.score(request) for request in planned.requests)
        self._generating = future
        for listener in self._listeners:
            future.listen(_without_end(listener.put))
        self._await(handles, step, partial(self._finish_select, handles, node, future, planned.prompt, planned.spans))

    def _finish_select(
        self,
        handles: tuple[Handle[ScoreResult], ...],
        node: Select,
        future: VariableFuture,
        prompt: TokenRope,
        spans: ChoiceSpans,
    ) -> None:
        self._generating = None
        results = [handle.result(0) for handle in handles]
        alone = results[1].token_logprobs if len(results) > 1 else None
        index, scores = decide(node.choices_method, ChoiceScores(spans.spans, results[0].token_logprobs, alone))
        choice = node.choices[index]
        self._position = self._position.add_generated(prompt, spans.spans[index], choice)
        future.resolve(choice, choice, select_meta(node, results[0], scores))

    def _hints(self) -> Hints:
        siblings, self._siblings = self._siblings, 0  # the first request of a fork announces the others
        return Hints(self.run.program_id, siblings, self._fork_len if siblings else 0)

    def _await(self, handles: tuple[Handle[Any], ...], step: _Step, finish: Callable[[], None]) -> None:
        self._in_flight = handles
        self._num_awaited = len(handles)
        for handle in handles:
            handle.add_done_callback(lambda: post(lambda: self._arrived(step, finish)))

    def _arrived(self, step: _Step, finish: Callable[[], None]) -> None:
        self._num_awaited -= 1
        if self._num_awaited:
            return
        self._in_flight = ()
        try:
            finish()
        except BaseException as error:
            self._fail(step, error)
        self._pump()


def _skip(step: _Step, error: BaseException) -> None:
    """End what a node would have brought about; a barrier is reached all the same."""
    for child in step.children:
        child.begin_failed(error)
    if step.defines is not None:
        if step.node is None:
            step.defines.resolve(None, "")
        else:
            step.defines.fail(error)


def _role_after(role: str | None, nodes: Iterable[Expr]) -> str | None:
    """The open turn after ``nodes``, starting inside ``role``."""
    for node in nodes:
        match node:
            case RoleBegin(role=opened):
                if role is not None:
                    raise ProgramError(
                        f"a {opened!r} turn is opened inside a {role!r} turn; close it first with s.{role}_end()"
                    )
                role = opened
            case RoleEnd(role=closed):
                if role != closed:
                    given = "no turn is open" if role is None else f"the open turn is {role!r}"
                    raise ProgramError(f"a {closed!r} turn is closed, but {given}; open it first with s.{closed}_begin()")
                role = None
    return role


def _without_end(put: Put) -> Put:
    """Pass on text and keep the end of a variable from looking like the end of the stream."""

    def put_text(text: str | None) -> None:
        if text is not None:
            put(text)

    return put_text

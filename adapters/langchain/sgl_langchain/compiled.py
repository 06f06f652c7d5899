"""``compile_runnable``: a chain that shares what its prompts have in common, and runs as a program where nobody could notice.

The compiled runnable is a binding around the original and looks like it from every side. A call runs as a program of the
language if no callback handler would miss anything, and else by LangChain's own code inside a scope, which bounds the requests
in flight and knows them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from typing import Any, Final, Literal, TypeVar, cast, get_args

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase, RunnableLike, coerce_to_runnable
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.schema import StreamEvent
from pydantic import ConfigDict, PrivateAttr
from typing_extensions import override

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError
from sgl_core.language import SglFunction
from sgl_langchain.planning import Pins, Planned, Planning
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.rewriting import on_engine, prepared
from sgl_langchain.scope import Scope, current_scope
from sgl_langchain.translate.explain import explain
from sgl_langchain.translate.plan import Plan
from sgl_langchain.translate.reorder import reordered

__all__ = ["CompiledRunnable", "Mode", "compile_runnable"]

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")
Mode = Literal["auto", "scope", "program"]
Configs = RunnableConfig | Sequence[RunnableConfig] | None
ConfigsT = TypeVar("ConfigsT", bound=Configs)


def compile_runnable(
    runnable: RunnableLike[InputT, OutputT],
    *,
    engine: Backend | None = None,
    mode: Mode = "auto",
    reorder: bool = False,
) -> CompiledRunnable[InputT, OutputT]:
    """A runnable that gives what ``runnable`` gives, and shares more of the work.

    Args:
        runnable: whatever LangChain takes for one: a runnable, a function, a dict of them. It is not changed. What is
            appended to its prompts later counts for the compiled one, too.
        engine: an engine for those models inside that name none: no ``engine``, and no ``model`` or engine option of their
            own. It stays yours to close. None leaves every model where it is.
        mode: "auto" runs a call as a program where it may, and by LangChain's own code where not. "program" does the same
            and tells the log, once for each reason, when it was not a program. "scope" always runs LangChain's own code.
        reorder: move constant parts of prompts to the front where that is possible. **This changes the prompts**, so the
            answers may change. ``moves`` of the result is the difference, and ``explain()`` begins with it.

    Raises:
        InvalidArgumentError: one of the arguments cannot be used.
        PluginHookError: a plugin answered for a step with something that is no node.
    """
    if mode not in get_args(Mode):
        raise InvalidArgumentError("mode", mode, "'auto', 'scope' or 'program'")
    if engine is not None and (isinstance(engine, type) or not isinstance(engine, Backend)):
        raise InvalidArgumentError("engine", type(engine).__name__, "None or an engine, as Engine() makes it")
    bound, moves = (runnable.bound, runnable.moves) if type(runnable) is CompiledRunnable else (_coerced(runnable), "")
    if engine is not None:
        bound = on_engine(bound, engine)
    if reorder:
        bound, moved = reordered(bound)
        moves += moved
    compiled = _rebuilt(bound, mode, moves)
    compiled._planning.planned(bound)  # a plugin's mistake shows here, not in the first call
    return cast("CompiledRunnable[InputT, OutputT]", compiled)


def _coerced(runnable: Any) -> Runnable[Any, Any]:
    try:
        coerced: Runnable[Any, Any] = coerce_to_runnable(runnable)
    except TypeError:
        given = type(runnable).__name__
        cure = "Pass what you would call invoke on, or put into a chain with |."
        raise InvalidArgumentError("runnable", given, "a Runnable, a function or a dict of them", cure) from None
    return coerced


class _Width(int):
    """A ``max_concurrency`` that a compiled runnable has set, and nobody asked for."""


class CompiledRunnable(RunnableBindingBase[InputT, OutputT]):
    """A runnable made by ``compile_runnable``: ``bound``, in fewer passes of the model.

    Schemas, graph, name, values, errors, chunks and the tree of runs are those of ``bound``. ``max_concurrency`` of a call
    bounds the model requests in flight, however many pools are nested inside; without it, pools are as wide as the engine.
    Leaving a stream early aborts its requests. A pickle holds the original and the options.

    Attributes:
        mode: see ``compile_runnable``.
        moves: what ``reorder=True`` moved in the prompts; empty if nothing.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    mode: Mode = "auto"
    moves: str = ""
    _planning: Planning = PrivateAttr(default_factory=Planning)

    # ---- the original, seen from outside -----------------------------------------------------------------------------
    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        """LangChain loads its own classes only."""
        return False

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The original's."""
        return self.bound.get_graph(config)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """The original and the options; what is known of it is found out again."""
        return _rebuilt, (self.bound, self.mode, self.moves)

    def __repr__(self) -> str:
        """That of the original, and how it runs."""
        return f"CompiledRunnable({self.bound!r}, mode={self.mode!r})"

    # ---- one input ---------------------------------------------------------------------------------------------------
    @override
    def invoke(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> OutputT:
        """Like ``bound.invoke``."""
        program = self._program(config)
        if program is not None:
            with self._outer(config):
                return cast("OutputT", program.invoke(input, config, **kwargs))
        scope, config = self._opened(config, is_wide=True)
        with scope.active():
            return self.bound.invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> OutputT:
        """Like ``bound.ainvoke``; cancelling it aborts its requests."""
        program = self._program(config)
        if program is not None:
            with self._outer(config):
                return cast("OutputT", await program.ainvoke(input, config, **kwargs))
        scope, config = self._opened(config)
        with scope.active():
            return await self.bound.ainvoke(input, config, **kwargs)

    # ---- many inputs -------------------------------------------------------------------------------------------------
    @override
    def batch(
        self,
        inputs: list[InputT],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[OutputT]:
        """Like ``bound.batch``, as wide as the engine; what the prompts begin with is computed once."""
        program = self._program(config)
        with self._kept(len(inputs)):
            if program is not None:
                with self._outer(config):
                    return program.batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
            scope, config = self._opened(config, is_wide=True, is_batch=True)
            with scope.active():
                return self.bound.batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[InputT],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[OutputT]:
        """Like ``batch``."""
        program = self._program(config)
        async with self._akept(len(inputs)):
            if program is not None:
                with self._outer(config):
                    return await program.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
            scope, config = self._opened(config)
            with scope.active():
                return await self.bound.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    @override
    def batch_as_completed(
        self, inputs: Sequence[InputT], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Generator[tuple[int, Any], None, None]:
        """Like ``bound.batch_as_completed``; leaving it early aborts the requests that are under way."""
        scope, wide = self._opened(config, is_wide=True, is_batch=True, is_abortable=True)
        program = self._program_as_completed(config)
        run: Any = self.bound if program is None else program
        configs = wide if program is None else config
        with self._kept(len(inputs)):
            yield from scope.iterate(
                lambda: run.batch_as_completed(inputs, configs, return_exceptions=return_exceptions, **kwargs)
            )

    @override
    async def abatch_as_completed(
        self, inputs: Sequence[InputT], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncGenerator[tuple[int, Any], None]:
        """Like ``batch_as_completed``."""
        scope, _ = self._opened(config, is_abortable=True)
        run: Any = self._program_as_completed(config) or self.bound
        async with self._akept(len(inputs)):
            pairs = scope.aiterate(
                lambda: run.abatch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)
            )
            async with aclosing(pairs):
                async for pair in pairs:
                    yield pair

    # ---- streams: always LangChain's own code ------------------------------------------------------------------------
    @override
    def stream(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[OutputT]:
        """Like ``bound.stream``; leaving it early aborts its requests, where LangChain would let a chain run to its end."""
        scope, config = self._opened(config, is_wide=True, is_abortable=True)
        return scope.iterate(lambda: self.bound.stream(input, config, **kwargs))

    @override
    def astream(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[OutputT]:
        """Like ``bound.astream``; leaving or cancelling it aborts its requests."""
        scope, config = self._opened(config, is_abortable=True)
        return scope.aiterate(lambda: self.bound.astream(input, config, **kwargs))

    @override
    def transform(self, input: Iterator[InputT], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[OutputT]:
        """Like ``bound.transform``; see ``stream``."""
        scope, config = self._opened(config, is_wide=True, is_abortable=True)
        return scope.iterate(lambda: self.bound.transform(scope.outside(input), config, **kwargs))

    @override
    def atransform(
        self, input: AsyncIterator[InputT], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[OutputT]:
        """Like ``bound.atransform``; see ``astream``."""
        scope, config = self._opened(config, is_abortable=True)
        return scope.aiterate(lambda: self.bound.atransform(scope.aoutside(input), config, **kwargs))

    @override
    def stream_events(self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """``bound.stream_events``: LangChain's own object, which runs when it is read, and outside of any scope."""
        return self.bound.stream_events(input, config, **kwargs)

    @override
    def astream_events(  # type: ignore[override]  # as LangChain's own: the version decides
        self, input: InputT, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[StreamEvent] | Awaitable[Any]:
        """Like ``bound.astream_events``; leaving it early aborts its requests. Of ``version="v3"`` as for ``stream_events``."""
        if kwargs.get("version") == "v3":
            return cast("Awaitable[Any]", self.bound.astream_events(input, config, **kwargs))
        scope, config = self._opened(config, is_abortable=True)
        events = cast("Callable[..., AsyncIterator[StreamEvent]]", self.bound.astream_events)
        return scope.aiterate(lambda: events(input, config, **kwargs))

    # ---- what is known of it -----------------------------------------------------------------------------------------
    @property
    def plan(self) -> Plan:
        """The plan: a new one after the text of a prompt has changed."""
        return self._planned().plan

    def explain(self, config: RunnableConfig | None = None) -> str:
        """What the model calls have in common, what keeps them from having more, and whether it runs as a program.

        Args:
            config: of the call in question, where the chain has configurable parts.
        """
        text = explain(self._plan_for(config))
        return f"{self.moves}\n\n{text}" if self.moves else text

    def program(self, config: RunnableConfig | None = None) -> SglFunction:
        """The native program, with the argument ``input``; its output is ``state.ret_value``. ``print`` shows its text.

        The text is for reading: long constants are cut in it, and host code stands by its name.

        Args:
            config: as for ``explain``.
        """
        return RunnableProgram(self._plan_for(config)).function

    def warmup(self) -> int:
        """Compute the constant beginnings of the prompts now, and keep them until ``close()`` or the end of this object.

        Those of fewer than 32 tokens are left out: computing them costs no more than asking for them.

        Returns:
            The tokens that are kept. A second call computes nothing, unless a prompt's text has changed.

        Raises:
            PoolExhaustedError: they are more than an engine keeps.
            ModelError: a model cannot be found, read or served.
        """
        return self._planning.warm_up(self._planned())

    def close(self) -> None:
        """Let go of what ``warmup`` keeps. The engines and models are not closed; their owners do that."""
        self._planning.close()

    # ---- how a call runs ---------------------------------------------------------------------------------------------
    def _planned(self, *, with_texts: bool = True) -> Planned:
        return self._planning.planned(self.bound, with_texts=with_texts)

    def _plan_for(self, config: RunnableConfig | None) -> Plan:
        found = prepared(self.bound, config)
        return self.plan if found is self.bound else Plan.of(found)

    def _program(self, config: Configs) -> RunnableProgram | None:
        """The program, if the call may run as one."""
        if self.mode == "scope":
            return None
        program = self._planned().program
        for one in _distinct(config):
            reason = program.refusal(one)
            if reason is not None:
                if self.mode == "program":
                    self._planning.say_once(reason)
                return None
        return program

    def _program_as_completed(self, config: Configs) -> RunnableProgram | None:
        """As above; in LangChain's ``batch_as_completed`` a retry around the whole chain tries once, and so it shall be."""
        return None if self._planned(with_texts=False).is_retry else self._program(config)

    def _opened(
        self, config: ConfigsT, *, is_wide: bool = False, is_batch: bool = False, is_abortable: bool = False
    ) -> tuple[Scope, ConfigsT]:
        """The scope of one call, and the configuration for LangChain's code in it.

        Args:
            config: the caller's; not changed.
            is_wide: give LangChain's thread pools the width of the engine if the caller named none. Its tasks need none, and
                one input needs it for the branches inside only. Functions that look at their configuration see the number.
            is_batch: there are several inputs.
            is_abortable: see ``Scope``.
        """
        known = self._planned(with_texts=False)
        named = _named_limit(config)
        limit = known.limit if named is None else named
        if is_wide and limit is None and known.width is not None and (is_batch or known.has_forks):
            config = cast("ConfigsT", _widened(config, _Width(known.width)))
        return Scope(_as_gate(limit), current_scope(), is_abortable=is_abortable), config

    def _outer(self, config: Configs) -> AbstractContextManager[object]:
        """The scope of a program, which bounds itself by its configuration and cannot see what is bound around the chain."""
        limit = self._planned(with_texts=False).limit if _named_limit(config) is None else None
        return nullcontext() if limit is None else Scope(_as_gate(limit), current_scope()).active()

    # Where the engine lets requests wait for a beginning that another one is computing, nothing is computed in advance: for a
    # cold batch of 24 that took one pass more and saved no token (SmolLM2-135M, a prefix of 245 tokens: 4 passes, not 3).
    def _kept(self, num_inputs: int) -> AbstractContextManager[None]:
        return Pins().held(self._planned()) if num_inputs > 1 else nullcontext()

    def _akept(self, num_inputs: int) -> AbstractAsyncContextManager[None]:
        return Pins().aheld(self._planned()) if num_inputs > 1 else nullcontext()


def _rebuilt(bound: Runnable[Any, Any], mode: Mode, moves: str) -> CompiledRunnable[Any, Any]:
    """What ``__reduce__`` took apart."""
    return CompiledRunnable(bound=bound, mode=mode, moves=moves, name=getattr(bound, "name", None))


# ---- max_concurrency ---------------------------------------------------------------------------------------------------
_KEY: Final = "max_concurrency"


def _named_limit(config: Configs) -> int | None:
    """The number that the caller named: as for LangChain, that of the first configuration, or else of the run around it."""
    first: Any = config if config is None or isinstance(config, dict) else next(iter(config), None)
    named = first.get(_KEY) if first else None
    if named is None:
        around = var_child_runnable_config.get()
        named = around.get(_KEY) if around else None
    return None if isinstance(named, _Width) else named


def _as_gate(limit: int | None) -> int | None:
    """Numbers that mean nothing get no gate; LangChain's pools have their own words for them."""
    return limit if isinstance(limit, int) and limit > 0 else None


def _widened(config: Configs, width: _Width) -> Configs:
    """A copy of the configuration that lets LangChain's pools be as wide."""
    if config is None or isinstance(config, dict):
        return cast("RunnableConfig", {**(config or {}), _KEY: width})
    return [cast("RunnableConfig", {**one, _KEY: width}) if one.get(_KEY) is None else one for one in config]


def _distinct(config: Configs) -> Sequence[RunnableConfig | None]:
    """Each configuration once."""
    if config is None or isinstance(config, dict):
        return (config,)
    return list({id(one): one for one in config}.values())

"""What a compiled runnable knows of the chain that it runs: the plan, the width, the program, and the prefixes that it keeps.

``CompiledRunnable`` owns one ``Planning``. All of it is made when it is first wanted, and the part that depends on the texts of
prompts again when those have changed. Everything here is safe from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import Any, Final, Self

from langchain_core.runnables import Runnable

from sgl_core.errors import EngineError, SglError
from sgl_core.runtime.pinning import PinnedPrefix
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.translate import nodes
from sgl_langchain.translate.engines import engine_of
from sgl_langchain.translate.lower import lower
from sgl_langchain.translate.plan import Plan

__all__ = ["Pins", "Planned", "Planning"]

_log = logging.getLogger(__name__)
_MIN_PREFIX_TOKENS: Final = 32  # computing fewer costs no more than asking for them


class Planned:
    """What follows from one plan.

    Args:
        plan: of the chain.
    """

    def __init__(self, plan: Plan) -> None:
        """Look at the nodes; programs and prefixes are made when they are wanted."""
        self.plan = plan
        self.limit = _own_limit(plan.root)
        self.width = _width(plan.root)
        self.is_retry = isinstance(_inside(plan.root), nodes.Retry)
        self.has_forks = any(isinstance(node, nodes.Parallel | nodes.Each) for node in _deep(plan.root))

    @cached_property
    def program(self) -> RunnableProgram:
        """The chain as a program."""
        return RunnableProgram(self.plan)

    @cached_property
    def warm_prefixes(self) -> tuple[tuple[nodes.Model, str | None, tuple[int, ...]], ...]:
        """Model, namespace and ids of what every batch will need. Leases engines, and holds none.

        Raises:
            ModelError: a model cannot be found, read or served.
        """
        found = {}
        for prefix in self.plan.prefixes():
            ids = prefix.ids[: prefix.warm_len]
            if len(ids) >= _MIN_PREFIX_TOKENS and hasattr(prefix.engine, "pin"):
                found[id(prefix.engine), prefix.namespace, ids] = prefix.model, prefix.namespace, ids
        return tuple(found.values())


class Planning:
    """The current ``Planned`` of one chain, and the prefixes that ``warmup`` keeps."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._lock = threading.Lock()
        self._warming = threading.Lock()
        self._planned: Planned | None = None
        self._held: list[tuple[Planned, Pins]] = []  # at most one
        self._told: set[str] = set()
        weakref.finalize(self, _give_back, self._held).atexit = False  # at exit the engines end, and the pins with them

    def planned(self, runnable: Runnable[Any, Any], *, with_texts: bool = True) -> Planned:
        """What is known of ``runnable``, always the same one.

        Args:
            runnable: the chain.
            with_texts: look whether a prompt's text has changed since. Shape, limit and width do not depend on that.

        Raises:
            PluginHookError: a plugin answered for a step of it with something that is no node.
        """
        found = self._planned
        if found is not None and (not with_texts or found.plan.is_current()):
            return found
        with self._lock:
            if self._planned is None or self._planned is found:
                self._planned = Planned(Plan.of(runnable))
            return self._planned

    def say_once(self, reason: str) -> None:
        """Tell the log why a call is no program, where one was asked for."""
        with self._lock:
            is_new = reason not in self._told
            self._told.add(reason)
        if is_new:
            _log.warning("not run as a program: %s; LangChain's own code runs it, with the same result", reason)

    # ---- prefixes ----------------------------------------------------------------------------------------------------
    def warm_up(self, planned: Planned) -> int:
        """Pin the prefixes of a plan until ``close``; how many tokens those are.

        Raises:
            PoolExhaustedError: they do not fit beside what is pinned already.
            SglError: whatever else keeps them from being computed.
        """
        with self._warming:
            if not (self._held and self._held[0][0] is planned):
                self._release()
                pins = Pins()
                try:
                    pins.take(planned)
                except BaseException:
                    pins.release()
                    raise
                self._held.append((planned, pins))
            return self._held[0][1].num_tokens

    def close(self) -> None:
        """Let the prefixes go; ``warm_up`` pins them anew."""
        with self._warming:
            self._release()

    def _release(self) -> None:
        for _, pins in self._held:
            pins.release()
        self._held.clear()

    # ---- copies ------------------------------------------------------------------------------------------------------
    def __copy__(self) -> Self:
        """Itself: a copy runs the same chain."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Planning:
        """A fresh one, for the copy of the chain."""
        return Planning()

    def __eq__(self, other: object) -> bool:
        """Any two are equal: they are no part of what a compiled runnable means."""
        return isinstance(other, Planning)

    __hash__ = None  # type: ignore[assignment]


class Pins:
    """Pinned prefixes, which are unpinned together. One that comes after ``release`` is unpinned at once."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._pins: list[PinnedPrefix] = []
        self._is_released = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all prefixes; what two of them have in common is counted twice."""
        return sum(pin.pinned_tokens for pin in self._pins)

    def take(self, planned: Planned) -> None:
        """Pin the prefixes of a plan; waits until they are computed.

        Raises:
            SglError: one cannot be pinned; those before it are.
        """
        for model, namespace, ids in planned.warm_prefixes:
            self._add(engine_of(model).pin(ids, namespace=namespace))  # type: ignore[attr-defined]  # those that can pin

    def release(self) -> None:
        """Unpin all, for good."""
        with self._lock:
            self._is_released = True
            pins, self._pins = self._pins, []
        for pin in pins:
            _unpin(pin)

    def _add(self, pin: PinnedPrefix) -> None:
        with self._lock:
            if not self._is_released:
                self._pins.append(pin)
                return
        _unpin(pin)

    # ---- for the time of a batch -------------------------------------------------------------------------------------
    @contextmanager
    def held(self, planned: Planned) -> Iterator[None]:
        """Pinned until the end of the block, as far as they can be."""
        try:
            self._try(planned)
            yield
        finally:
            self.release()

    @asynccontextmanager
    async def aheld(self, planned: Planned) -> AsyncIterator[None]:
        """Like ``held``, without blocking the loop. Cancelled meanwhile, it leaves no pin behind."""
        try:
            await asyncio.to_thread(self._try, planned)
            yield
        finally:
            await asyncio.shield(asyncio.to_thread(self.release))

    def _try(self, planned: Planned) -> None:
        """A prefix is a hint: a chain that could not run would say so itself, and in its own words.

        On an engine that shares in flight the first request of a batch computes what the others wait for. To do it for them
        would cost a pass of the model and save nothing.
        """
        try:
            if not all(engine_of(model).capabilities.shares_in_flight for model in planned.plan.models):
                self.take(planned)
        except SglError as error:
            _log.debug("prefixes are not kept for a batch: %s", type(error).__name__)


def _unpin(pin: PinnedPrefix) -> None:
    try:
        pin.unpin()
    except EngineError:
        _log.debug("the engine of a pinned prefix is closed, and the prefix gone with it")


def _give_back(held: list[tuple[Planned, Pins]]) -> None:
    """Unpin what a dead object kept, on a thread of its own: unpinning waits for an engine, whose thread may be this one."""
    for _, pins in held:
        threading.Thread(target=pins.release, name="sgl-unpin").start()


# ---- what nodes say ----------------------------------------------------------------------------------------------------
def _own_limit(node: nodes.Node) -> int | None:
    """``max_concurrency`` as bound around the whole chain; the outermost counts, as it does for LangChain."""
    while isinstance(node, nodes.Binding | nodes.Retry):
        limit: int | None = node.config.get("max_concurrency") if isinstance(node, nodes.Binding) else None
        if limit:
            return limit
        node = node.bound
    return None


def _inside(node: nodes.Node) -> nodes.Node:
    """What the bindings around a chain are around."""
    while isinstance(node, nodes.Binding):
        node = node.bound
    return node


def _width(root: nodes.Node) -> int | None:
    """How many requests the engines run at once.

    None where a part inside has a limit of its own, which any number in a call's configuration would replace, and where
    no model is one of ours.
    """
    widths = []
    for node in _deep(root):
        if isinstance(node, nodes.Binding) and node.config.get("max_concurrency"):
            return None
        if isinstance(node, nodes.Model):
            widths.append(node.runnable._width)  # type: ignore[attr-defined]  # a model of ours, by its type
    return max(widths, default=None)


def _deep(root: nodes.Node) -> Iterable[nodes.Node]:
    """All nodes, with those of the defaults of configurable parts."""
    for node in root.walk():
        yield node
        if isinstance(node, nodes.Configurable):
            yield from _deep(lower(node.runnable.default))  # type: ignore[attr-defined]  # a DynamicRunnable, by its type

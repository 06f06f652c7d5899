"""What can be known of a chain before it runs: ``Plan``. ``compile_runnable`` makes one, scopes and programs read it.

A plan only proposes. Prompts are always the ones that LangChain formats, and a prefix of a plan is used where the ids of the
real prompt begin with it: a plan that is wrong costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.runnables import Runnable

from sgl_core.backend import Backend
from sgl_langchain.translate import nodes
from sgl_langchain.translate.engines import engine_key, engine_of
from sgl_langchain.translate.fingerprints import Fingerprint, fingerprint_of
from sgl_langchain.translate.lower import lower
from sgl_langchain.translate.nodes import Node
from sgl_langchain.translate.prefixes import common_prefix, constant_prefix
from sgl_langchain.translate.refusals import Refusals
from sgl_langchain.translate.steps import AttemptStep, ChoiceStep, ForkStep, GenStep, Step, gens_of, walk
from sgl_langchain.translate.tracing import Trace, trace

__all__ = ["Plan", "PlannedPrefix"]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPrefix:
    """The constant beginning of one model's prompts.

    Args:
        model: the model's node.
        ids: in token ids; empty where nothing is known to be constant.
        engine: where its calls go. ``namespace``: of its requests.
        warm_len: leading ids that are worth computing before anything has run. All of them, unless the model stands in an
            arm that may not be taken: then those that every arm begins with.
    """

    model: nodes.Model
    ids: tuple[int, ...]
    engine: Backend
    namespace: str | None
    warm_len: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A chain as nodes and as steps. Immutable; made by ``Plan.of``.

    Args:
        root: the node of the chain.
        trace: what it does, step by step.
        fingerprint: the state of its prompt templates when the plan was made.
    """

    root: Node
    trace: Trace
    fingerprint: Fingerprint
    _templates: tuple[Any, ...]

    @classmethod
    def of(cls, runnable: Runnable[Any, Any]) -> Self:
        """The plan of a runnable. Loads no engine and runs nothing.

        Raises:
            PluginHookError: a plugin answered for one of its steps with something that is no node.
        """
        root = lower(runnable)
        found = {id(node.runnable): node.runnable for node in root.walk() if isinstance(node, nodes.Prompt)}
        templates = tuple(found.values())
        return cls(root, trace(root), fingerprint_of(templates), templates)

    @property
    def models(self) -> tuple[nodes.Model, ...]:
        """Every call of a model of this package, in order; one that stands in two places is there twice."""
        return tuple(gen.model for gen in self.trace.gens())

    @property
    def fork_sites(self) -> tuple[nodes.Parallel, ...]:
        """Where branches run side by side, at least two of them with a model."""
        return tuple(
            step.node.mapper if isinstance(step.node, nodes.Assign) else step.node  # type: ignore[misc]
            for step in walk(self.trace.steps)
            if isinstance(step, ForkStep) and sum(any(gens_of(arm.body)) for arm in step.arms) > 1
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no call of it runs as a program, as its models are now; empty if nothing in the chain is against it."""
        return Refusals(self.root).of_chain()

    def is_current(self) -> bool:
        """Whether no prompt template has been changed since; cheap enough for every call."""
        return self.fingerprint == fingerprint_of(self._templates)

    def prefixes(self) -> tuple[PlannedPrefix, ...]:
        """The constant prefix of every model's prompts, in order; leases the engines, whose codecs it takes.

        Raises:
            ModelError: a model cannot be found, read or served.
        """
        found = {gen: _Prefix(constant_prefix(gen.model, gen.template), engine_of(gen.model)) for gen in self.trace.gens()}
        warm = _warm_lens(self.trace.steps, found)
        return tuple(
            PlannedPrefix(gen.model, prefix.ids, prefix.engine, engine_key(gen.model)[1], warm[gen])
            for gen, prefix in found.items()
        )


@dataclass(frozen=True, slots=True)
class _Prefix:
    ids: tuple[int, ...]
    engine: Backend


def _warm_lens(steps: Iterable[Step], found: Mapping[GenStep, _Prefix]) -> dict[GenStep, int]:
    lens: dict[GenStep, int] = {}
    for step in steps:
        if isinstance(step, GenStep):
            lens[step] = len(found[step].ids)
        elif isinstance(step, ChoiceStep):
            certain = _common_to_all([arm.body for arm in step.arms], found)
            for arm in step.arms:
                lens |= _warm_lens(arm.test, found)
                lens |= {gen: len(common_prefix([certain, found[gen].ids])) for gen in gens_of(arm.body)}
        elif isinstance(step, AttemptStep):
            lens |= _warm_lens(step.arms[0].body, found)
            lens |= dict.fromkeys((gen for arm in step.arms[1:] for gen in gens_of(arm.body)), 0)
        else:
            for body in step.bodies():
                lens |= _warm_lens(body, found)
    return lens


def _common_to_all(bodies: Iterable[tuple[Step, ...]], found: Mapping[GenStep, _Prefix]) -> tuple[int, ...]:
    """What the first prompts of all arms begin with; nothing if an arm asks no model, or they go to several engines."""
    firsts = [next(gens_of(body), None) for body in bodies]
    prefixes = [found[gen] for gen in firsts if gen is not None]
    if len(prefixes) < len(firsts) or any(prefix.engine is not prefixes[0].engine for prefix in prefixes):
        return ()
    return common_prefix([prefix.ids for prefix in prefixes])

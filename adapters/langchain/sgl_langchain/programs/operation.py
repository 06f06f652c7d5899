"""What every operation has in common: how one value goes through it, and how a list of them does.

An operation stands for one node of a chain. ``making`` builds a tree of them once; evaluations then only walk it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from langchain_core.runnables import RunnableConfig

from sgl_langchain.programs.effects import Effect, Evaluation, Failure, Outcome, Together

if TYPE_CHECKING:
    from sgl_langchain.programs.calls import Calls

__all__ = ["NO_KWARGS", "Frame", "Kwargs", "Operation"]

Kwargs = Mapping[str, Any]
NO_KWARGS: Final[Kwargs] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an evaluation runs.

    Args:
        config: what the steps get, as LangChain would give it to them.
        calls: the program's way to the models.
        is_async: on an event loop.
    """

    config: RunnableConfig
    calls: Calls
    is_async: bool

    @property
    def limit(self) -> int | None:
        """The user's ``max_concurrency``."""
        return self.config.get("max_concurrency")

    def under(self, config: RunnableConfig) -> Frame:
        """The same with another configuration."""
        return Frame(config, self.calls, self.is_async)


class Operation:
    """One node.

    Attributes:
        couples: in a batch, what happens to one value depends on the others.
        sees_config: host code inside may look at its configuration.
    """

    couples: ClassVar[bool] = False
    sees_config: bool = False

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """One value."""
        raise NotImplementedError

    def run_item(self, value: Any, frame: Frame, kwargs: Kwargs, trail: list[int]) -> Evaluation:  # noqa: ARG002
        """One value of a batch; ``trail`` tells at each moment which step of which sequence it has come to."""
        return self.run(value, frame, kwargs)

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> Generator[Effect, Any, list[Outcome]]:
        """Several values, none of which waits for another; returns their outcomes.

        Raises:
            BaseException: unless errors are kept, the one that LangChain would raise: it takes a batch step by step, so an
                error of an earlier step comes first, and then the first by position.
        """
        if not values:
            return []
        trails: list[list[int]] = [[] for _ in values]
        items = zip(values, frames, trails, strict=True)
        evaluations = [self.run_item(value, frame, kwargs, trail) for value, frame, trail in items]
        outcomes: list[Outcome] = yield Together(evaluations, frames[0].limit, keeps_errors)
        if not keeps_errors:
            failed = [(trail, i) for i, trail in enumerate(trails) if isinstance(outcomes[i], Failure)]
            if failed:
                raise outcomes[min(failed)[1]].error
        return outcomes

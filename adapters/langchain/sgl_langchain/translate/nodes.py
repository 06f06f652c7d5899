"""What a runnable is made of, as frozen nodes: the form in which chains are explained, planned and run as programs.

``lower`` makes a tree of nodes by walking LangChain's own objects, plugins add kinds of their own, and everything behind that
(prefixes, ``explain``, the listing, the programs) reads nodes only. A node refers to the runnable that it stands for and never
copies it: whatever a node does not know about, the runnable still does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

__all__ = [
    "Assign",
    "Binding",
    "Branch",
    "Call",
    "Configurable",
    "Each",
    "Fallbacks",
    "Model",
    "Node",
    "Parallel",
    "Parse",
    "Passthrough",
    "Pick",
    "Prompt",
    "Retry",
    "Router",
    "Sequence",
]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One runnable.

    Args:
        runnable: the original.
    """

    runnable: Runnable[Any, Any]

    def children(self) -> tuple[Node, ...]:
        """The nodes inside it, in the order in which LangChain knows them."""
        return ()

    def walk(self) -> Iterator[Node]:
        """Itself and everything inside it, depth first."""
        yield self
        for child in self.children():
            yield from child.walk()


@dataclass(frozen=True, slots=True, eq=False)
class Sequence(Node):
    """One step after another (``|``). Keyword arguments go to the first step only."""

    steps: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        """Its steps."""
        return self.steps


@dataclass(frozen=True, slots=True, eq=False)
class Parallel(Node):
    """The same input for every branch, a dict of what they give: a fork and a join in the order of the keys."""

    branches: tuple[tuple[str, Node], ...]

    def children(self) -> tuple[Node, ...]:
        """Its branches."""
        return tuple(node for _, node in self.branches)


@dataclass(frozen=True, slots=True, eq=False)
class Assign(Node):
    """A dict, with the keys of ``mapper`` added."""

    mapper: Parallel

    def children(self) -> tuple[Node, ...]:
        """The mapper."""
        return (self.mapper,)


@dataclass(frozen=True, slots=True, eq=False)
class Pick(Node):
    """One key of a dict, or a dict of some."""

    keys: str | tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Passthrough(Node):
    """Its input. ``has_effect``: a function of the user's sees it go by."""

    has_effect: bool


@dataclass(frozen=True, slots=True, eq=False)
class Prompt(Node):
    """A prompt template: values to a prompt. ``translate.prompts`` says what of its text is constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Model(Node):
    """A model of this package.

    Args:
        options: that a binding around it gives to every call.
        is_chat: ``ChatSgl``; otherwise ``SglLLM``.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    is_chat: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Parse(Node):
    """An output parser: pure, and the streaming ones read piece by piece."""


@dataclass(frozen=True, slots=True, eq=False)
class Each(Node):
    """The same runnable for every element of a list (``.map()``)."""

    bound: Node

    def children(self) -> tuple[Node, ...]:
        """What runs for an element."""
        return (self.bound,)


@dataclass(frozen=True, slots=True, eq=False)
class Branch(Node):
    """The first arm whose condition holds, or the default."""

    arms: tuple[tuple[Node, Node], ...]
    default: Node

    def children(self) -> tuple[Node, ...]:
        """Conditions and arms in turn, then the default."""
        return (*(node for arm in self.arms for node in arm), self.default)


@dataclass(frozen=True, slots=True, eq=False)
class Router(Node):
    """The runnable that the input names by its key."""

    routes: tuple[tuple[str, Node], ...]

    def children(self) -> tuple[Node, ...]:
        """All that it could name."""
        return tuple(node for _, node in self.routes)


@dataclass(frozen=True, slots=True, eq=False)
class Fallbacks(Node):
    """The first of several that does not fail."""

    primary: Node
    fallbacks: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        """The primary one, then the others."""
        return (self.primary, *self.fallbacks)


@dataclass(frozen=True, slots=True, eq=False)
class Retry(Node):
    """The same again after certain errors."""

    bound: Node

    def children(self) -> tuple[Node, ...]:
        """What is tried."""
        return (self.bound,)


@dataclass(frozen=True, slots=True, eq=False)
class Binding(Node):
    """Another runnable with arguments and configuration of its own.

    Args:
        options: keyword arguments of every call; where ``bound`` is a model it has them already.
        config: merged into every call's. ``factories``: make more of it at every call.
    """

    bound: Node
    options: Mapping[str, Any] = field(default_factory=dict)
    config: RunnableConfig = field(default_factory=RunnableConfig)
    factories: tuple[Callable[[RunnableConfig], RunnableConfig], ...] = ()

    def children(self) -> tuple[Node, ...]:
        """What is bound."""
        return (self.bound,)


@dataclass(frozen=True, slots=True, eq=False)
class Configurable(Node):
    """A runnable that the configuration of a call chooses or changes: known when it is called, and lowered then."""


@dataclass(frozen=True, slots=True, eq=False)
class Call(Node):
    """A runnable that runs as it is: once, in its place, by its own ``invoke``.

    Args:
        name: for listings.
        is_pure: depends on nothing but its input and changes nothing (``itemgetter``), so it may run on any thread.
        is_known: LangChain's own kind of step (a lambda, a retriever, a tool); otherwise nobody knows what it does with its
            configuration, and what it sends to a model cannot be planned.
        fn: what a plugin wants called instead of ``invoke``: the value to the value, without configuration.
    """

    name: str
    is_pure: bool = False
    is_known: bool = True
    fn: Callable[[Any], Any] | None = None

"""Who suggests another order for a run of text and arguments: a rule, or a model. The checker of ``movement`` decides.

Called by ``movement.move`` for one region at a time. A proposer owns nothing and changes nothing: it looks at a region and
says in which order its nodes could stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError, TemplateError
from sgl_core.language.graph import GraphNode
from sgl_core.language.ir import Argument, ConstantText, Expr
from sgl_core.language.primitives import assistant, gen, user
from sgl_core.types import TurnState

if TYPE_CHECKING:
    from sgl_core.language.state import ProgramState

__all__ = ["HeuristicProposer", "LLMProposer", "Proposer", "Region"]

_SHOWN_CHARS: Final = 120
_SEPARATOR: Final = ", "


@dataclass(frozen=True, slots=True)
class Region:
    """Text and arguments of one stream with nothing else of that stream between them: what may change places.

    Args:
        stream: id of the stream.
        nodes: of ``ConstantText`` and ``Argument``, in order.
        behind: what makes the text before it differ from run to run; empty if that text is always the same.
    """

    stream: int
    nodes: tuple[GraphNode, ...]
    behind: str = ""

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the nodes, in order."""
        return tuple(node.id for node in self.nodes)


class Proposer(Protocol):
    """Suggests an order."""

    def propose(self, region: Region) -> Sequence[int] | Sequence[GraphNode]:
        """The nodes of ``region``, by id or as they are, in the order in which they should stand.

        An order that breaks a rule is refused, and the region stays as it is. To leave it so, give the order that it has.
        """


class HeuristicProposer:
    """Text that is always the same first, arguments behind it; both keep their order among themselves."""

    def propose(self, region: Region) -> tuple[int, ...]:
        """Constants first."""
        return tuple(node.id for node in sorted(region.nodes, key=lambda node: isinstance(node.op, Argument)))


class LLMProposer:
    """Asks a model, through any backend, as a program of this language.

    The answer is constrained to as many numbers as there are nodes, each the number of one of them, so any model gives an
    answer that can be read. Whether it is an order at all, and a legal one, is for the checker to say.

    Args:
        backend: where the model is.
        max_tokens: budget of the answer; None is enough for the longest.
        guidance: what the model should know besides, such as which arguments stay the same over many runs.
    """

    def __init__(self, backend: Backend, *, max_tokens: int | None = None, guidance: str = "") -> None:
        """Keep what was given.

        Raises:
            InvalidArgumentError: ``max_tokens`` or ``guidance`` cannot be used.
        """
        if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
            raise InvalidArgumentError("max_tokens", max_tokens, "an int of at least 1, or None")
        if not isinstance(guidance, str):
            raise InvalidArgumentError("guidance", type(guidance).__name__, "a str")
        self._backend = backend
        self._max_tokens = max_tokens
        self._guidance = guidance

    def propose(self, region: Region) -> tuple[int, ...]:
        """Run the program that asks, and read the numbers of its answer; greedy, so the same question has one answer.

        Raises:
            SglError: the backend cannot run it.
        """
        # Not at the top: programs know the compiler, the compiler knows its proposers.
        from sgl_core.language.program import SglFunction

        state = SglFunction(_propose_order).run(
            question=question(region, self._guidance),
            answer=gen("order", self._max_tokens or _longest_answer(region), regex=answer_pattern(region), temperature=0.0),
            in_turns=_has_turns(self._backend),
            backend=self._backend,
            seed=0,
        )
        return tuple(int(number) for number in re.findall("[0-9]+", state["order"]))


def question(region: Region, guidance: str = "") -> str:
    """What a model is asked about ``region``: its nodes by number, long text shortened, arguments by name."""
    listed = "\n".join(f"{node.id}: {_shown(node.op)}" for node in region.nodes)
    asked = (
        "These numbered parts make a prompt that is run many times. A text part is the same each time, an argument differs. "
        "Computers reuse the beginning of a prompt up to the first place that differs. Put the parts into an order that "
        "makes the common beginning as long as possible and still reads well.\n\n"
        f"{listed}\n\n"
    )
    if guidance:
        asked += f"{guidance}\n\n"
    return f"{asked}Write all {len(region.nodes)} numbers, each once, in the new order.\n"


def answer_pattern(region: Region) -> str:
    """The regex of an answer: exactly as many numbers as nodes, each the number of a node."""
    number = f"({'|'.join(str(node_id) for node_id in region.ids)})"
    return f"{number}({_SEPARATOR}{number}){{{len(region.nodes) - 1}}}"


def _longest_answer(region: Region) -> int:
    """Tokens that are enough: one for every digit and one for every character of a separator."""
    digits = max(len(str(node_id)) for node_id in region.ids)
    return len(region.nodes) * (digits + len(_SEPARATOR))


def _shown(op: Expr) -> str:
    match op:
        case ConstantText(text=text):
            short = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
            return f"text {short!r}"
        case Argument(name=name):
            return f"argument {{{name}}}"
    raise InvalidArgumentError("region", type(op).__name__, "nodes of ConstantText and Argument")


def _has_turns(backend: Backend) -> bool:
    """Whether the model takes turns; one without a chat template is asked in plain text."""
    if backend.codec is None:
        return True
    try:
        backend.codec.open_turn("user", TurnState())
    except TemplateError:
        return False
    return True


def _propose_order(s: ProgramState, question: str, answer: Expr, in_turns: bool) -> None:
    if in_turns:
        s += user(question)
        s += assistant("Order:\n" + answer)
    else:
        s += question + "Order:\n" + answer

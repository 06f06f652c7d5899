"""What a stream asks of its backend: a generation or a choice under way, from the request to the position behind it.

Called by the stream on the dispatcher's thread. ``finish`` is called once all handles have ended; it resolves the variable and
says where the stream stands, or raises the node's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sgl_core.backend import Handle
from sgl_core.errors import RequestAborted
from sgl_core.language.choices import ChoiceScores, decide
from sgl_core.language.healing import GenPrompt, continued, prompt_of
from sgl_core.language.ir import AdaptiveGen, Gen, Select
from sgl_core.language.meta import gen_meta, select_meta
from sgl_core.language.position import Position
from sgl_core.language.reasoning import continued_answer, split_reasoning
from sgl_core.language.requests import PlannedSelect, generation_request, score_requests
from sgl_core.language.sampling import read_as
from sgl_core.language.variables import VariableFuture
from sgl_core.types import FinishReason, GenResult, Hints, SamplingParams, ScoreResult

if TYPE_CHECKING:
    from sgl_core.language.run import ProgramRun

__all__ = ["GenTask", "Pending", "start_select"]


class Pending(Protocol):
    """Requests under way."""

    @property
    def handles(self) -> tuple[Handle[Any], ...]:
        """All of them."""

    @property
    def future(self) -> VariableFuture:
        """The variable that they make."""

    @property
    def prompt_len(self) -> int:
        """Tokens before the first that the model chooses."""

    def finish(self) -> Position:
        """Resolve the variable; the position behind it."""


@dataclass(frozen=True, slots=True, eq=False)
class GenTask:
    """A generation to be made.

    Args:
        run: the program.
        position: where it begins.
        node: what is asked for.
        params: of the request.
        future: gets the value.
        reasoning: gets the reasoning that is kept apart, if the node says so.
    """

    run: ProgramRun
    position: Position
    node: Gen
    params: SamplingParams
    future: VariableFuture
    reasoning: VariableFuture | None

    def start(self, hints: Hints) -> Pending:
        """Submit the request; the variable's listeners hear of its text as it comes."""
        prompt = self._prompt()
        max_len = self.node.max_len if isinstance(self.node, AdaptiveGen) else None
        request = generation_request(self.run, self.position, prompt, self.params, hints, max_len=max_len)
        handle = self.run.backend.submit(request)
        if self.node.reasoning is None:
            self.future.start(handle)
        return _PendingGen(self, prompt, handle)

    def share(self, result: GenResult) -> Position:
        """Take the result of an equal generation; the position behind it."""
        return self.take(self._prompt(), result)

    def take(self, prompt: GenPrompt, result: GenResult) -> Position:
        """Resolve the variables; the position behind the result."""
        run, node = self.run, self.node
        if result.finish_reason is FinishReason.ABORT:
            raise run.cancelled or RequestAborted(f"the request of variable {self.future.name!r} was aborted")
        self.future.generation = result
        meta = gen_meta(node, result, self.params.seed, run.codec)
        text = result.text
        if node.reasoning is None:
            position = continued(self.position, run.codec, prompt, result)
        else:
            reasoning, text = split_reasoning(text, node.reasoning)
            position = continued_answer(self.position, run.codec, prompt, result, text)
            if self.reasoning is not None:
                self.reasoning.resolve(reasoning, reasoning, meta)
        if result.finish_reason is FinishReason.LENGTH and self.params.max_new_tokens is None:
            run.note_cut(self.future.name)
        self.future.resolve(read_as(node.dtype, text), text, meta)
        return position

    def _prompt(self) -> GenPrompt:
        return prompt_of(self.position, self.run.codec, self.node.heal, self.run.backend.capabilities)


@dataclass(frozen=True, slots=True, eq=False)
class _PendingGen:
    """A generation under way."""

    task: GenTask
    prompt: GenPrompt
    handle: Handle[GenResult]

    @property
    def handles(self) -> tuple[Handle[Any], ...]:
        return (self.handle,)

    @property
    def future(self) -> VariableFuture:
        return self.task.future

    @property
    def prompt_len(self) -> int:
        return self.prompt.ids.length

    def finish(self) -> Position:
        return self.task.take(self.prompt, self.handle.result(0))


@dataclass(frozen=True, slots=True, eq=False)
class _PendingSelect:
    """A choice under way."""

    position: Position
    node: Select
    planned: PlannedSelect
    future: VariableFuture
    handles: tuple[Handle[ScoreResult], ...]

    @property
    def prompt_len(self) -> int:
        return self.planned.prompt.length

    def finish(self) -> Position:
        results = [handle.result(0) for handle in self.handles]
        spans = self.planned.spans.spans
        alone = results[1].token_logprobs if len(results) > 1 else None
        index, scores = decide(self.node.choices_method, ChoiceScores(spans, results[0].token_logprobs, alone))
        choice = self.node.choices[index]
        self.future.resolve(choice, choice, select_meta(self.node, results[0], scores))
        return self.position.add_generated(self.planned.prompt, spans[index], choice)


def start_select(run: ProgramRun, position: Position, node: Select, hints: Hints, future: VariableFuture) -> Pending:
    """Submit the scoring of a choice."""
    planned = score_requests(run, position, node, hints)
    return _PendingSelect(position, node, planned, future, tuple(run.backend.score(request) for request in planned.requests))

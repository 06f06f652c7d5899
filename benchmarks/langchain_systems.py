"""The systems that run the LangChain programs: ``ChatHuggingFace`` over a pipeline, and our engine in three ways.

All of them are greedy, on the same weights in float32, with the same number of threads and the same budget for every call; an
end-of-text token ends an answer, as it does for users. Models are loaded once and wait without work while another system runs.
Every model call is noted with the ids of its prompt and what came out.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from execution import Answered
from harness import Advance, Outcome, Session, System
from langchain_core.language_models import BaseChatModel
from langchain_workloads import Chain, LangChainWorkload
from recording import RecordingEngine, counts

from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import quiet_transformers
from sgl_core.types import SamplingParams
from sgl_langchain import ChatSgl

__all__ = [
    "CACHE_OFF",
    "COMPILED",
    "DTYPE",
    "HUGGING_FACE",
    "OURS",
    "Baseline",
    "LangChainOutcome",
    "ModelCall",
    "engine_system",
    "margin",
]

DTYPE = "float32"
OURS, COMPILED, CACHE_OFF, HUGGING_FACE = "sgl-core", "sgl-core, compiled", "sgl-core, cache off", "ChatHuggingFace"
"""The systems."""
_BATCH_SIZE = 16
"""Of ``HuggingFacePipeline`` and its pipeline. A chat model hands its pipeline one prompt at a time, so it does nothing; the
outcome tells how many prompts came at once."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of the model: the ids of its prompt, and the text that came out."""

    prompt: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class LangChainOutcome(Outcome):
    """What one round gave, with what the program itself put out.

    Args:
        outputs: of the program.
        calls: of the model, in the order in which they ended.
    """

    outputs: tuple[str, ...] = ()
    calls: tuple[ModelCall, ...] = ()


# ---- our engine ---------------------------------------------------------------------------------------------------------
def engine_system(
    name: str,
    workload: LangChainWorkload,
    engine: RecordingEngine,
    rounds: int,
    *,
    patience_s: float = math.inf,
    compiled: bool = False,
) -> System:
    """``ChatSgl`` on this engine, whose cache every round finds empty.

    Args:
        compiled: run what ``compile_runnable`` makes of the chain; made before the clock starts and not warmed up.
        rounds, patience_s: see ``System``.
    """

    @contextmanager
    def session() -> Iterator[Session]:
        chain = workload.build(lambda max_tokens: ChatSgl(engine=engine, max_tokens=max_tokens))
        if compiled:
            chain = _compiled(chain)
        engine.flush_cache()
        engine.reset_stats()
        engine.forget()

        def run(advance: Advance) -> Outcome:
            engine.advance = advance
            return _engine_outcome(engine, workload.drive(chain))

        yield run

    return System(name, session, rounds, patience_s)


def margin(engine: Engine, prompt: Sequence[int], texts: Sequence[str]) -> float | None:
    """Where two greedy answers to one prompt part: how much likelier the best token is than the next one, in log-probability.

    A small one says that the order of additions decides, which differs with the batch that a prompt is computed in.

    Args:
        engine: asked alone, for its own answer. ``prompt``: its ids. ``texts``: the answers.

    Returns:
        None if no token of the engine's answer departs from any of the texts.
    """
    longest = max(len(engine.codec.encode(text)) for text in texts) + 1
    (result,) = engine.generate([list(prompt)], SamplingParams(max_new_tokens=longest, logprobs=2))
    for number, entry in enumerate(result.logprobs or ()):
        so_far = engine.codec.decode(result.token_ids[: number + 1]).rstrip("\ufffd")  # half a character
        if not all(text.startswith(so_far) for text in texts):
            (_, best), (_, second) = entry.top
            return best - second
    return None


def _compiled(chain: Chain) -> Chain:
    from sgl_langchain import compile_runnable

    compiled: Chain = compile_runnable(chain)
    return compiled


def _engine_outcome(engine: RecordingEngine, outputs: Sequence[str]) -> LangChainOutcome:
    engine.check_invariants()  # between two steps, so behind the notes on the last answers
    requests = [request for request, _ in engine.answered]
    results = [result for _, result in engine.answered]
    record = tuple(Answered((number,), "", request) for number, request in enumerate(requests))
    calls = tuple(ModelCall(r.prompt, result.text) for r, result in engine.answered)
    return LangChainOutcome(record, counts(engine, requests, [result.usage for result in results]), tuple(outputs), calls)


# ---- ChatHuggingFace ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _PipelineCall:
    """One call of a pipeline: prompts as text with the template's control tokens, and the new text of each."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]


class _NotingPipeline:
    """Stands before a transformers pipeline and notes its calls; has the attributes that its users look at."""

    def __init__(self, pipeline: Any, note: Callable[[_PipelineCall], None]) -> None:
        self.task, self.model, self.tokenizer = pipeline.task, pipeline.model, pipeline.tokenizer
        self._pipeline = pipeline
        self._note = note

    def __call__(self, prompts: Sequence[str], **options: Any) -> Any:
        answers = self._pipeline(prompts, **options)
        self._note(_PipelineCall(tuple(prompts), tuple(answer[0]["generated_text"] for answer in answers)))
        return answers


class HuggingFaceModels:
    """Makes ``ChatHuggingFace`` models on one copy of the weights, and owns the record of their calls.

    Args:
        folder: the same weights that the engine runs.
        packages: where langchain-huggingface is; the end of the import path gets it.
    """

    def __init__(self, folder: Path, packages: Path) -> None:
        """Load the model, on the thread whose torch is to run it."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if str(packages) not in sys.path:
            sys.path.append(str(packages))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with quiet_transformers():  # its progress bar would break into ours
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPE), local_files_only=True)
        self._model.eval()
        self._folder = str(folder)
        self.calls: list[_PipelineCall] = []
        self.advance: Advance = lambda _: None

    def chat(self, max_tokens: int) -> BaseChatModel:
        """A chat model over a pipeline of its own, as the page of ``ChatHuggingFace`` shows it."""
        from transformers import pipeline

        chat_models = importlib.import_module("langchain_huggingface.chat_models")
        llms = importlib.import_module("langchain_huggingface.llms")
        asked = {"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False}
        whole = pipeline("text-generation", model=self._model, tokenizer=self.tokenizer, batch_size=_BATCH_SIZE, **asked)
        llm = llms.HuggingFacePipeline(
            pipeline=_NotingPipeline(whole, self._note), model_id=self._folder, batch_size=_BATCH_SIZE
        )
        model: BaseChatModel = chat_models.ChatHuggingFace(llm=llm, tokenizer=self.tokenizer, model_id=self._folder)
        return model

    def _note(self, call: _PipelineCall) -> None:
        self.calls.append(call)
        self.advance(len(call.prompts))

    def outcome(self, outputs: Sequence[str]) -> LangChainOutcome:
        """Of all calls since the record was emptied."""
        answered = tuple(
            ModelCall(tuple(self.tokenizer(prompt)["input_ids"]), text)
            for call in self.calls
            for prompt, text in zip(call.prompts, call.texts, strict=True)
        )
        prompt_tokens = sum(len(call.prompt) for call in answered)
        details = {
            "dtype": DTYPE,
            "prompt_tokens": prompt_tokens,
            "computed_tokens": prompt_tokens,
            "prompts_at_once": max(len(call.prompts) for call in self.calls),
        }
        return LangChainOutcome((), details, tuple(outputs), answered)


class Baseline:
    """``ChatHuggingFace`` on a thread of its own, so that torch's team of threads ends with it.

    Args:
        folder, packages: see ``HuggingFaceModels``.
        threads: of torch.
    """

    def __init__(self, folder: Path, packages: Path, threads: int) -> None:
        """Load the model and run it once."""
        self._thread = ThreadPoolExecutor(1)
        self._call(torch.set_num_threads, threads)  # OpenMP keeps the number per thread
        self._models = self._call(HuggingFaceModels, folder, packages)
        self._call(self._models.chat(8).invoke, "What is a tide?")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _call(self, function: Callable[..., ResultT], *args: Any) -> ResultT:
        return self._thread.submit(function, *args).result()

    def system(self, workload: LangChainWorkload, rounds: int, *, patience_s: float) -> System:
        """The program as a user of ``ChatHuggingFace`` would run it.

        Args:
            rounds, patience_s: see ``System``.
        """
        models = self._models

        @contextmanager
        def session() -> Iterator[Session]:
            chain = workload.build(models.chat)
            models.calls.clear()

            def run(advance: Advance) -> Outcome:
                models.advance = advance
                return models.outcome(self._call(workload.drive, chain))

            yield run

        return System(HUGGING_FACE, session, rounds, patience_s)

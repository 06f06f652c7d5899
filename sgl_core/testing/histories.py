"""One prompt, many histories: what the cache, the batch and the scheduler may do to a request without changing its tokens.

Tests of exactness call ``run_histories`` with an engine factory and compare what comes out, with each other or with
``greedy_references`` from ``transformers.generate``. Each history asserts that it happened: a warm run without hits, or a
retraction that retracted nobody, proves nothing. Owns no state; torch is imported when a reference is made, not before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final

from sgl_core.backend import Backend, Handle
from sgl_core.language import ProgramState, function, gen
from sgl_core.types import GenDelta, GenRequest, GenResult, SamplingParams

if TYPE_CHECKING:
    from sgl_core.runtime.engine import Engine

__all__ = [
    "BATCH_SIZES",
    "EXCUSED_GAP",
    "Difference",
    "Family",
    "Reference",
    "first_difference",
    "greedy_references",
    "run_forks",
    "run_histories",
]

BATCH_SIZES: Final = (1, 2, 3, 5, 8, 16)
"""Requests submitted together, in turn; every history starts elsewhere, so a prompt has other company in each."""
EXCUSED_GAP: Final = 1e-4
"""Where the reference's two best logits are closer than this, the order of additions decides between them."""
CHUNK_TOKENS: Final = 7
"""Of the chunked history: shorter than most prompts, and no power of two."""
_WAIT_S = 600.0

Results = list[GenResult]


@dataclass(frozen=True, slots=True)
class Family:
    """Prompts that begin alike.

    Args:
        trunk: how they begin; at least one token.
        tails: what follows, one for each prompt, none empty.
    """

    trunk: str
    tails: tuple[str, ...]

    @property
    def prompts(self) -> list[str]:
        """The whole texts."""
        return [self.trunk + tail for tail in self.tails]


# ---- histories -------------------------------------------------------------------------------------------------------
def run_histories(
    make_engine: Callable[..., Engine], families: Sequence[Family], params: SamplingParams, *, cache_off: bool = False
) -> dict[str, Results]:
    """Generate for every prompt of every family in five histories, or six.

    - **cold**: an empty cache before each batch.
    - **warm**: every prompt was computed before.
    - **forked**: the trunk alone is computed first, then the siblings in one batch.
    - **retracted**: each request goes back to the queue in the middle of its output, every other time with its KV lost.
    - **chunked**: prompts are prefilled in small pieces, on an engine of its own.
    - **cache off** (only if asked for): nothing is shared, on an engine of its own.

    Args:
        make_engine: makes an engine with the options given; its pool holds all prompts with their outputs.
        params: of all requests; ``n`` is 1.
        cache_off: run that one too.

    Returns:
        For each history the results, in the order of the families' prompts.

    Raises:
        AssertionError: a history did not happen.
    """
    prompts = [prompt for family in families for prompt in family.prompts]
    results = {}
    with make_engine() as engine:
        for turn, history in enumerate((_cold, _warm, _retracted)):
            engine.flush_cache()
            engine.reset_stats()
            results[history.__name__.lstrip("_")] = history(engine, prompts, params, turn)
        results["forked"] = _forked(engine, families, params)
        engine.check_invariants()
    with make_engine(prefill_chunk_tokens=CHUNK_TOKENS) as engine:
        results["chunked"] = _chunked(engine, prompts, params, 3)
        engine.check_invariants()
    if cache_off:
        with make_engine(prefix_cache=False) as engine:
            results["cache off"] = [result for batch in _batches(prompts, 4) for result in _together(engine, batch, params)]
            assert engine.stats().cached_tokens == 0, "a cache that is off was hit"
            engine.check_invariants()
    return results


def run_forks(engine: Engine, families: Sequence[Family], max_new_tokens: int) -> Results:
    """The families as programs: the trunk once, a fork for each tail, greedy.

    Returns:
        The results, in the order of the families' prompts.

    Raises:
        AssertionError: forks computed their trunk themselves.
    """
    results: Results = []
    for family in families:
        engine.flush_cache()
        recorder = _Recorder(engine)
        _fork_program.run(family=family, max_new_tokens=max_new_tokens, backend=recorder)
        results += recorder.in_order_of(engine.codec.encode(prompt) for prompt in family.prompts)
    cached = sum(result.usage.cached_tokens > 0 for result in results)
    assert cached >= len(results) - len(families), "forks computed their trunk more than once"
    return results


def _cold(engine: Engine, prompts: Sequence[str], params: SamplingParams, turn: int) -> Results:
    results: Results = []
    for batch in _batches(prompts, turn):
        engine.flush_cache()
        fresh = _together(engine, batch, params)
        assert len(batch) > 1 or fresh[0].usage.cached_tokens == 0, "a cold request found something cached"
        results += fresh
    return results


def _warm(engine: Engine, prompts: Sequence[str], params: SamplingParams, turn: int) -> Results:
    _together(engine, prompts, params)
    engine.reset_stats()
    results = [result for batch in _batches(prompts, turn) for result in _together(engine, batch, params)]
    assert engine.stats().prefilled_tokens == len(prompts), "a warm prompt computes its last token and no other"
    return results


def _forked(engine: Engine, families: Sequence[Family], params: SamplingParams) -> Results:
    results: Results = []
    for family in families:
        engine.flush_cache()
        trunk = _common_start([engine.codec.encode(prompt) for prompt in family.prompts])
        engine.prefetch(engine.codec.begin() + trunk).result(_WAIT_S)
        siblings = _together(engine, family.prompts, params)
        least = min(sibling.usage.cached_tokens for sibling in siblings)
        assert least >= len(trunk) > 0, "a sibling computed its trunk"
        results += siblings
    return results


def _retracted(engine: Engine, prompts: Sequence[str], params: SamplingParams, turn: int) -> Results:
    results: Results = []
    for batch in _batches(prompts, turn):
        handles = [engine.submit(prompt, params) for prompt in batch]
        for index, handle in enumerate(handles, start=len(results)):
            handle.add_delta_callback(_Retractor(engine, handle.id, after=1 + index % 4, loses_kv=index % 2 == 0))
        results += [handle.result(_WAIT_S) for handle in handles]
    stats = engine.stats()
    assert stats.num_retractions >= len(prompts) // 2, "most requests were never retracted"
    assert stats.recomputed_tokens > 0, "no retracted request lost its KV"
    return results


def _chunked(engine: Engine, prompts: Sequence[str], params: SamplingParams, turn: int) -> Results:
    results: Results = []
    for batch in _batches(prompts, turn):
        engine.flush_cache()
        results += _together(engine, batch, params)
    stats = engine.stats()
    assert stats.num_steps >= math.ceil(stats.prefilled_tokens / CHUNK_TOKENS), "a prompt was not cut into chunks"
    assert stats.prefilled_tokens > CHUNK_TOKENS * len(results) / 2, "hardly a prompt is longer than a chunk"
    return results


def _batches(prompts: Sequence[str], turn: int) -> Iterator[Sequence[str]]:
    sizes = islice(cycle(BATCH_SIZES), turn, None)
    start = 0
    while start < len(prompts):
        end = start + next(sizes)
        yield prompts[start:end]
        start = end


def _together(engine: Engine, prompts: Sequence[str], params: SamplingParams) -> Results:
    handles = [engine.submit(prompt, params) for prompt in prompts]
    return [handle.result(_WAIT_S) for handle in handles]


def _common_start(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Ids that all begin with, and that none consists of."""
    first, last = min(sequences), max(sequences)
    most = min(map(len, sequences)) - 1
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    return first[: min(same, most)]


class _Retractor:
    """Listens to one request, and sends it back to the queue once, behind its ``after``-th token.

    It is called on the engine thread between two steps, or before that on the submitting one.
    """

    def __init__(self, engine: Engine, request_id: str, *, after: int, loses_kv: bool) -> None:
        self._engine = engine
        self._request_id = request_id
        self._left = after
        self._loses_kv = loses_kv

    def __call__(self, delta: GenDelta) -> None:
        before, self._left = self._left, self._left - len(delta.token_ids)
        if before <= 0 or self._left > 0:
            return
        self._engine._loop.call(lambda machine: machine.scheduler.retract(self._request_id))
        if self._loses_kv:
            self._engine.flush_cache()


class _Recorder:
    """A backend that keeps what passes it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seen: dict[tuple[int, ...], Handle[GenResult]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        handle = self._backend.submit(request)
        self._seen[request.input_ids] = handle
        return handle

    def in_order_of(self, prompts: Iterable[tuple[int, ...]]) -> Results:
        begin = self._backend.codec.begin() if self._backend.codec is not None else ()
        return [self._seen[begin + prompt].result(_WAIT_S) for prompt in prompts]


@function
def _fork_program(s: ProgramState, family: Family, max_new_tokens: int) -> None:
    s += family.trunk
    forks = s.fork(len(family.tails))
    for fork, tail in zip(forks, family.tails, strict=True):
        fork += tail
        fork += gen("end", max_tokens=max_new_tokens, temperature=0)
    forks.join()


# ---- the reference ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Reference:
    """What ``transformers.generate`` gives for one prompt.

    Args:
        ids: without the end token.
        gaps: of every step, the end token's included: the difference of its two best logits.
    """

    ids: tuple[int, ...]
    gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where ids leave their reference: at ``step``, where its two best logits were ``gap`` apart."""

    step: int
    gap: float

    @property
    def is_excused(self) -> bool:
        """Whether rounding explains it."""
        return self.gap < EXCUSED_GAP


def first_difference(ids: Sequence[int], reference: Reference) -> Difference | None:
    """The first step at which ``ids`` and the reference go apart; one that ends where the other goes on counts."""
    if tuple(ids) == reference.ids:
        return None
    pairs = enumerate(zip(ids, reference.ids, strict=False))
    step = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(reference.ids)))
    return Difference(step, reference.gaps[step])


def greedy_references(
    model: Any, prompts: Sequence[tuple[int, ...]], *, max_new_tokens: int, eos_ids: Iterable[int], batch_size: int = 32
) -> list[Reference]:
    """Greedy ids and gaps of a transformers model.

    Prompts of equal length run together: nothing is padded, so no mask or position differs from a run alone.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: token ids.
        batch_size: prompts together at most.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    eos = sorted(eos_ids)
    made: dict[int, Reference] = {}
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            references = _generate(model, [prompts[index] for index in batch], max_new_tokens, eos)
            made.update(zip(batch, references, strict=True))
    return [made[index] for index in range(len(prompts))]


def _generate(model: Any, prompts: list[tuple[int, ...]], max_new_tokens: int, eos: list[int]) -> Iterator[Reference]:
    import torch

    ids = torch.tensor(prompts)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
    gaps = torch.stack([-step.topk(2).values.diff(dim=-1)[:, 0] for step in out.logits], dim=1)  # [prompts, steps]
    for new, row in zip(out.sequences[:, ids.shape[1] :].tolist(), gaps.tolist(), strict=True):
        end = next((i for i, token in enumerate(new) if token in eos), len(new))
        yield Reference(tuple(new[:end]), tuple(row[: end + 1]))

"""Greedy and seeded output is what ``transformers.generate`` gives, whatever cache, batch and scheduler did to a request.

Fast mode sums in another order than the reference, so a token may differ where the reference's two best logits are closer
than ``EXCUSED_GAP``; such a prompt is compared up to there and counted, and one in a hundred may need it. Deterministic mode
has no excuse. The tiny model, with random weights, makes hundreds of prompts cheap; the embedded one makes sense of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.testing.histories import (
    EXCUSED_GAP,
    Family,
    Reference,
    first_difference,
    greedy_references,
    run_forks,
    run_histories,
)
from sgl_core.types import GenResult, SamplingParams

NEW_TOKENS = 9
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS)
SAMPLED = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=1.0, top_p=0.95, seed=17)
NUM_FAMILIES = 60
SOAK_PARTS = 10
WAIT_S = 600.0
FIVE = {"cold", "warm", "forked", "retracted", "chunked"}

Figure = Callable[[str, Mapping[str, int]], None]

TRUNKS = {
    "story": "The {a} keeper of the {b} counted {n} boats,",
    "question": "Q: If {n} {b}s cost {m} coins, what does a {a} one cost?",
    "code": "def {b}_{n}({a}, limit={m}):\n    total = 0\n",
    "json": '{{"{b}": [{n}, {m}], "{a}": {{"id": {n}',
    "digits": "{n} {m} {n}{m} 3.{m} -{n} 0x{n:x} 1e{m} ",
    "german": "Der Zug nach {b} fährt um {n} Uhr {m} über die Brücke,",
    "french": "À la fenêtre, l'élève n° {n} a noté « {b} » {m} fois,",
    "russian": "В {n} году старый мост {b} был закрыт на {m} дней,",
    "greek": "Το βιβλίο {n} έχει {m} σελίδες",
    "chinese": "第{n}章：河边的小镇有{m}户人家，",
    "arabic": "في عام {n} كان هناك {m} قارب",
    "emoji": "🙂 {n} × {m} 🚀 {a} — ∑ ≠ ∏ “{b}”",
}
TAILS = (
    " and the {a} one said",
    "\n\nA: the {b} is",
    " -> {m}:",
    "\n    return {b} +",
    "، 然后 {n}, ещё {m} и",
)
ADJECTIVES = ("old", "blue", "narrow", "seventh", "quiet", "copper", "unlikely", "open")
NOUNS = ("harbour", "ledger", "window", "compiler", "orchard", "signal", "museum", "tide")


def make_families(count: int) -> list[Family]:
    """Families of five prompts: languages, code, numbers and symbols in turn, no two alike."""
    rng = random.Random(5)
    families = []
    for index in range(count):
        words = {"a": rng.choice(ADJECTIVES), "b": rng.choice(NOUNS), "n": rng.randrange(2, 3000), "m": rng.randrange(2, 99)}
        kind = list(TRUNKS)[index % len(TRUNKS)]
        families.append(Family(TRUNKS[kind].format(**words), tuple(tail.format(**words) for tail in TAILS)))
    return families


@dataclass(frozen=True)
class Subject:
    """A model to ask: a factory of engines, families, and what ``transformers.generate`` says of their prompts."""

    name: str
    make_engine: Callable[..., Engine]
    families: list[Family]
    references: list[Reference]

    def share(self, families: slice) -> Subject:
        """The same model with some of the families."""
        prompts = slice(families.start * len(TAILS), families.stop * len(TAILS))
        return Subject(self.name, self.make_engine, self.families[families], self.references[prompts])


def reference_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def prompt_ids(engine: Engine, families: list[Family]) -> list[tuple[int, ...]]:
    return [engine.codec.begin() + engine.codec.encode(prompt) for family in families for prompt in family.prompts]


def make_subject(name: str, make_engine: Callable[..., Engine], reference: Any, families: list[Family]) -> Subject:
    with make_engine() as engine:
        ids, eos = prompt_ids(engine, families), engine.facts.eos_ids
    assert len(set(ids)) == len(families) * len(TAILS)
    references = greedy_references(reference, ids, max_new_tokens=NEW_TOKENS, eos_ids=eos)
    return Subject(name, make_engine, families, references)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Subject:
    make_engine = partial(Engine, str(tiny_llama), dtype="float32", cache_tokens=49_152)
    return make_subject("tiny", make_engine, reference_model(tiny_llama), make_families(NUM_FAMILIES))


@pytest.fixture(scope="module")
def embedded_reference(embedded_folder: Path) -> Any:
    return reference_model(embedded_folder)


@pytest.fixture(scope="module")
def embedded_engine(embedded_model: LoadedModel) -> Callable[..., Engine]:
    return partial(Engine, loaded=embedded_model, cache_tokens=2_048)


@pytest.fixture(scope="module")
def embedded_10(embedded_engine: Callable[..., Engine], embedded_reference: Any) -> Subject:
    return make_subject("embedded", embedded_engine, embedded_reference, make_families(2))


@pytest.fixture(params=range(SOAK_PARTS))
def families_of_150(request: pytest.FixtureRequest) -> list[Family]:
    """One of the parts that 150 prompts are cut into, so that a share of the soak tests runs a share of the prompts."""
    return make_families(NUM_FAMILIES // 2)[request.param :: SOAK_PARTS]


def assert_like_the_reference(subject: Subject, histories: Mapping[str, list[GenResult]], figure: Figure) -> None:
    """The promise of fast mode, and its figure.

    Every prompt equal in every history, or excused by the reference's own gap at the first difference.
    """
    excused: dict[int, float] = {}
    for history, results in histories.items():
        for index, (result, reference) in enumerate(zip(results, subject.references, strict=True)):
            difference = first_difference(result.token_ids, reference)
            if difference is None:
                continue
            assert difference.is_excused, f"{history}: prompt {index}: {difference}"
            excused[index] = difference.gap
    num_prompts = len(subject.references)
    for index, gap in excused.items():
        print(f"excused: prompt {index}, gap {gap:.2g} < {EXCUSED_GAP:g}")
    counts = {"prompts": num_prompts, "runs": num_prompts * len(histories), "prompts excused": len(excused)}
    figure(f"R6 fast mode against transformers, {subject.name} model, {' '.join(histories)}", counts)
    assert len(excused) <= max(1, num_prompts // 100)


def ids_of(results: list[GenResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def assert_all_alike(name: str, histories: Mapping[str, list[GenResult]], figure: Figure) -> None:
    """Ids, text and end of every prompt are the same in every history, without excuse."""
    first, *others = histories.values()
    assert len(set(ids_of(first))) > len(first) / 2, "outputs that hardly differ prove little"
    for history, results in zip(list(histories)[1:], others, strict=True):
        wrong = [index for index, (a, b) in enumerate(zip(first, results, strict=True)) if a.token_ids != b.token_ids]
        assert not wrong, f"{history}: prompts {wrong} differ from {next(iter(histories))}"
        assert [(r.text, r.finish_reason) for r in results] == [(r.text, r.finish_reason) for r in first]
    figure(name, {"prompts": len(first), "runs": len(first) * len(histories), "differences": 0})


# ---- fast mode against transformers ----------------------------------------------------------------------------------
def test_three_hundred_prompts_are_those_of_transformers_in_every_history(tiny: Subject, figure: Figure) -> None:
    histories = run_histories(tiny.make_engine, tiny.families, GREEDY)
    assert set(histories) == FIVE
    assert_like_the_reference(tiny, histories, figure)


def test_forks_of_programs_are_those_of_transformers(tiny: Subject, figure: Figure) -> None:
    share = tiny.share(slice(0, 24))
    with share.make_engine() as engine:
        assert_like_the_reference(share, {"fork": run_forks(engine, share.families, NEW_TOKENS)}, figure)


def test_without_a_cache_prompts_are_those_of_transformers(tiny: Subject, figure: Figure) -> None:
    share = tiny.share(slice(0, 12))
    with share.make_engine(prefix_cache=False) as engine:
        results = engine.generate([prompt for family in share.families for prompt in family.prompts], GREEDY)
        assert engine.stats().cached_tokens == 0
    assert_like_the_reference(share, {"cache off": results}, figure)


def test_the_embedded_model_says_what_it_says_in_transformers_in_every_history(embedded_10: Subject, figure: Figure) -> None:
    assert_like_the_reference(embedded_10, run_histories(embedded_10.make_engine, embedded_10.families, GREEDY), figure)


@pytest.mark.soak
def test_one_hundred_and_fifty_prompts_of_the_embedded_model(
    families_of_150: list[Family], embedded_engine: Callable[..., Engine], embedded_reference: Any, figure: Figure
) -> None:
    subject = make_subject("embedded", embedded_engine, embedded_reference, families_of_150)
    assert_like_the_reference(subject, run_histories(subject.make_engine, subject.families, GREEDY, cache_off=True), figure)


def test_references_made_together_are_those_made_alone(embedded_10: Subject, embedded_reference: Any) -> None:
    with embedded_10.make_engine() as engine:
        ids, eos = prompt_ids(engine, embedded_10.families), engine.facts.eos_ids
    lengths = [len(prompt) for prompt in ids]
    mated = [index for index, length in enumerate(lengths) if lengths.count(length) > 1][:3]
    assert mated, "no prompt of the reference ran in a batch"
    mates = [ids[index] for index in mated]
    alone = greedy_references(embedded_reference, mates, max_new_tokens=NEW_TOKENS, eos_ids=eos, batch_size=1)
    for index, single in zip(mated, alone, strict=True):
        together = embedded_10.references[index]
        assert together.ids == single.ids
        assert max(abs(a - b) for a, b in zip(together.gaps, single.gaps, strict=True)) < EXCUSED_GAP / 2


# ---- seeds -----------------------------------------------------------------------------------------------------------
def test_a_seed_gives_one_text_in_every_history(tiny: Subject, figure: Figure) -> None:
    share = tiny.share(slice(0, 6))
    histories = run_histories(share.make_engine, share.families, SAMPLED)
    assert_all_alike("R6 one seed in every history, tiny model", histories, figure)


def test_a_seed_gives_one_text_alone_and_in_a_batch_of_thirty_two(tiny: Subject) -> None:
    prompts = [prompt for family in tiny.families[:7] for prompt in family.prompts][:32]
    each = [SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.9, seed=100 + index) for index in range(32)]
    with tiny.make_engine() as engine:
        together = ids_of(engine.generate(prompts, each))
        engine.flush_cache()
        alone = []
        for prompt, params in zip(prompts, each, strict=True):
            alone.append(engine.submit(prompt, params).result(WAIT_S).token_ids)
            engine.flush_cache()
    assert together == alone
    assert len(set(alone)) == 32


def test_eight_completions_of_one_prompt_are_reproducible_and_differ(tiny: Subject) -> None:
    params = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=23, n=8)
    prompt, *others = tiny.families[0].prompts
    with tiny.make_engine() as engine:
        first: Any = engine.submit(prompt, params).result(WAIT_S)
        stats = engine.stats()
        assert stats.prefilled_tokens < 2 * first[0].usage.prompt_tokens, "the prompt was computed more than once"
        engine.flush_cache()
        crowd = [engine.submit(other, params) for other in others]
        again: Any = engine.submit(prompt, params).result(WAIT_S)
        for handle in crowd:
            handle.result(WAIT_S)
    assert len(first) == len(again) == 8
    assert ids_of(first) == ids_of(again)
    assert [result.seed for result in first] == [result.seed for result in again]
    assert len(set(ids_of(first))) > 1


# ---- deterministic mode ----------------------------------------------------------------------------------------------
def assert_deterministic_ids(subject: Subject, figure: Figure) -> None:
    make_engine = partial(subject.make_engine, deterministic=True)
    histories = run_histories(make_engine, subject.families, GREEDY, cache_off=True)
    assert set(histories) == {*FIVE, "cache off"}
    assert_all_alike("R6 deterministic mode, tiny model", histories, figure)
    assert_like_the_reference(subject, histories, lambda *_: None)


def test_deterministic_ids_are_the_same_in_every_history_and_without_a_cache(tiny: Subject, figure: Figure) -> None:
    assert_deterministic_ids(tiny.share(slice(0, 24)), figure)


@pytest.mark.soak
def test_deterministic_ids_of_three_hundred_prompts_are_the_same_in_every_history(tiny: Subject, figure: Figure) -> None:
    assert_deterministic_ids(tiny, figure)


def test_deterministic_samples_are_the_same_in_every_history_and_without_a_cache(tiny: Subject, figure: Figure) -> None:
    make_engine = partial(tiny.make_engine, deterministic=True)
    histories = run_histories(make_engine, tiny.families[:4], SAMPLED, cache_off=True)
    assert_all_alike("R6 deterministic mode with a seed, tiny model", histories, figure)


@pytest.mark.soak
def test_one_hundred_deterministic_prompts_of_the_embedded_model(
    families_of_150: list[Family], embedded_engine: Callable[..., Engine], figure: Figure
) -> None:
    families = families_of_150[: 2 * len(families_of_150) // 3]
    histories = run_histories(partial(embedded_engine, deterministic=True), families, GREEDY, cache_off=True)
    assert_all_alike("R6 deterministic mode, embedded model", histories, figure)


# ---- the comparison itself -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ids", "step"), [((1, 2, 3), None), ((1, 9, 3), 1), ((1, 2), 2), ((), 0), ((1, 2, 3, 4), 3)])
def test_a_difference_is_the_first_step_that_is_another(ids: tuple[int, ...], step: int | None) -> None:
    difference = first_difference(ids, Reference((1, 2, 3), (0.5, 1e-5, 0.5, 0.5)))
    assert (difference.step if difference else None) == step
    assert difference is None or difference.is_excused is (step == 1)

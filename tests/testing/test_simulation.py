"""The simulation's own eyes: whatever goes wrong in a run that has ended, it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sgl_core.errors import EngineStepError
from sgl_core.runtime.plan import Finished, Progress
from sgl_core.runtime.request import Kind, Request, State
from sgl_core.testing.perturbation import assertions_of, place_of
from sgl_core.testing.simulation import VOCAB, Simulation, TextSink, driver, oracle_continuation, tokens
from sgl_core.types import FinishReason, SamplingParams


def ended() -> Simulation:
    """A generation that used its budget, one that stopped, and a scoring."""
    sim = Simulation()
    sim.submit(tokens(12), new=5, name="budget")
    continuation = oracle_continuation(tokens(12), 5, VOCAB)
    sim.submit(tokens(12), new=9, name="stop", stop_ids=frozenset(continuation[-1:]))
    sim.score(tokens(12), [tokens(3, seed=1)], name="score")
    sim.submit(tokens(9), new=2, name="known", params=SamplingParams(prompt_logprobs=True, logprobs=0))
    sim.drain()
    sim.assert_all_ended_well()
    return sim


def sink_of(sim: Simulation, name: str) -> TextSink:
    sink = sim.requests[name].sink
    assert isinstance(sink, TextSink)
    return sink


def say_something_else(request: Request) -> None:
    request.ids[-1] = (request.ids[-1] + 1) % VOCAB


def replace_end(sim: Simulation, name: str, end: Finished) -> None:
    sim.ends.pop(name)
    sim.note([end])


def leave_something(sim: Simulation) -> None:
    sim.scheduler.add(Request("late", [1], Kind.PREFETCH, sim.requests["stop"].params, 0, frozenset(), None, 0.0))


def miscount_generated(sim: Simulation) -> None:
    sim.scheduler.counters.generated_tokens += 1
    sim.oracle.computed_tokens += 1


Damage = Callable[[Simulation], object]
DAMAGE: dict[str, tuple[Damage, str]] = {
    "another text": (lambda sim: say_something_else(sim.requests["budget"]), "budget has another text"),
    "streamed twice": (lambda sim: sim.streamed["budget"].append(3), "budget has tokens that were not streamed, or too many"),
    "streamed too little": (lambda sim: sim.streamed["budget"].pop(), "budget has tokens that were not streamed, or too many"),
    "a stop token streamed": (
        lambda sim: sim.streamed["stop"].append(sim.requests["stop"].ids[-1]),
        "stop has tokens that were not streamed, or too many",
    ),
    "streamed out of order": (lambda sim: sim.streamed["budget"].reverse(), "budget was streamed another text"),
    "a token taken twice": (lambda sim: sink_of(sim, "budget").taken.append(3), "the sink of budget took other tokens"),
    "an end that never came": (lambda sim: sim.ends.pop("budget"), "a request never ended"),
    "somebody left": (leave_something, "something is left"),
    "a leaked slot": (lambda sim: sim.scheduler.memory.allocator.allocate(2), "slots or locks leaked"),
    "a leaked lock": (
        lambda sim: sim.scheduler.tree.inc_lock_ref(next(sim.scheduler.tree.walk())),
        "slots or locks leaked",
    ),
    "a state from before": (
        lambda sim: setattr(sim.requests["stop"], "state", State.WAITING),
        "stop ended, its state says State.WAITING",
    ),
    "slots kept": (lambda sim: sim.requests["stop"].slots.append(1), "stop ended and owns something"),
    "other log-probabilities": (lambda sim: sim.requests["known"].logprobs.pop(), "known has other log-probabilities"),
    "other scores": (lambda sim: sim.requests["score-0"].logprobs.pop(), "score-0 has other scores"),
    "an early end": (
        lambda sim: setattr(sim.requests["budget"], "max_new_tokens", 6),
        "budget ended before its budget",
    ),
    "a stop elsewhere": (
        lambda sim: replace_end(sim, "stop", Finished(sim.requests["stop"], FinishReason.STOP, matched_stop=VOCAB)),
        "stop stopped at another token",
    ),
    "two ends": (lambda sim: sim.note([sim.ends["stop"]]), "stop has an event after its end"),
    "a token after the end": (
        lambda sim: sim.note([Progress(sim.requests["stop"], 1, "1 ")]),
        "stop has an event after its end",
    ),
    "an error out of nowhere": (
        lambda sim: replace_end(sim, "stop", Finished(sim.requests["stop"], None, error=EngineStepError("why"))),
        "stop ended with EngineStepError('why'), which was not planted for it",
    ),
    "a prompt token lost": (
        lambda sim: setattr(sim.scheduler.counters, "prompt_tokens", 7),
        "a prompt token was neither cached nor run",
    ),
    "a generated token counted twice": (miscount_generated, "a generated token was not counted once"),
    "a run that was not counted": (
        lambda sim: setattr(sim.oracle, "computed_tokens", 7),
        "a token that ran was not counted once",
    ),
}


def failure(damage: Damage) -> AssertionError:
    sim = ended()

    def damage_and_check() -> None:
        damage(sim)
        sim.assert_all_ended_well()

    with pytest.raises(AssertionError) as caught:
        damage_and_check()
    return caught.value


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_the_simulation_notices_damage(damage: Damage, complaint: str) -> None:
    assert str(failure(damage)).partition("\n")[0] == complaint


def test_no_final_assertion_is_without_damage_that_sets_it_off() -> None:
    everything = assertions_of(
        Simulation.note,
        Simulation.assert_right,
        Simulation.assert_nothing_leaked,
        Simulation.assert_all_ended_well,
        Simulation.assert_accounts,
        driver._assert_complete,
    )
    assert everything == {place_of(failure(damage)) for damage, _ in DAMAGE.values()}


def test_a_queue_that_does_not_drain_is_noticed() -> None:
    sim = Simulation()
    sim.submit(tokens(5), new=20)
    with pytest.raises(AssertionError, match="does not drain in 3 steps"):
        sim.drain(limit=3)


def test_the_oracles_text_depends_on_every_token_and_on_the_namespace() -> None:
    plain = oracle_continuation(tokens(20), 8, VOCAB)
    assert plain == oracle_continuation(tokens(20), 8, VOCAB)
    assert plain != oracle_continuation(tokens(20), 8, VOCAB, namespace="a")
    for position in range(20):
        changed = tokens(20)
        changed[position] = (changed[position] + 1) % VOCAB
        assert oracle_continuation(changed, 8, VOCAB) != plain


def test_sequences_of_one_seed_are_prefixes_of_each_other() -> None:
    assert tokens(30, seed=4)[:12] == tokens(12, seed=4) != tokens(12, seed=5)

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from sgl_core.errors import EngineShutdown, GrammarError, InvalidArgumentError, NotYetAvailableError, RequestAborted
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenRequest, PrefetchRequest, SamplingParams, ScoreRequest

WAIT_S = 60


def request(text: str = "hi", **params: object) -> GenRequest:
    return GenRequest(tuple(text.encode()), SamplingParams(**params))


def test_a_reply_sees_ids_and_parameters() -> None:
    with FakeBackend(lambda ids, params: f"{len(ids)} {params.top_k}") as backend:
        assert backend.submit(request("abc", top_k=5)).result(WAIT_S).text == "3 5"


def test_words_depend_on_all_of_the_prompt() -> None:
    with FakeBackend() as backend:
        texts = {backend.submit(request(text)).result(WAIT_S).text for text in ("ab", "bb", "ba", "a")}
    assert len(texts) == 4


def test_the_seed_matters_only_above_temperature_zero() -> None:
    with FakeBackend() as backend:
        greedy = {backend.submit(request(seed=seed)).result(WAIT_S).text for seed in range(4)}
        sampled = {backend.submit(request(seed=seed, temperature=1.0)).result(WAIT_S).text for seed in range(4)}
    assert (len(greedy), len(sampled)) == (1, 4)


def test_requests_are_recorded_before_any_reply_is_computed() -> None:
    both_are_there = threading.Event()

    def reply(ids: tuple[int, ...], params: SamplingParams) -> str:
        return str(both_are_there.wait(WAIT_S))

    with FakeBackend(reply) as backend:
        handles = [backend.submit(request()) for _ in range(20)]  # more than there are threads
        assert len(backend.requests) == 20
        both_are_there.set()
        assert all(handle.result(WAIT_S).text == "True" for handle in handles)


def test_eight_replies_may_wait_for_each_other() -> None:
    barrier = threading.Barrier(8)
    with FakeBackend(lambda ids, params: str(barrier.wait(WAIT_S) >= 0)) as backend:
        handles = [backend.submit(request()) for _ in range(8)]
        assert all(handle.result(WAIT_S).text == "True" for handle in handles)


def test_delayed_requests_wait_side_by_side_and_end() -> None:
    with FakeBackend(latency_s=0.01) as backend:
        handles = [backend.submit(request(str(number))) for number in range(40)]
        assert all(handle.result(WAIT_S).finish_reason is FinishReason.STOP for handle in handles)


def test_fail_ends_a_request_with_its_error() -> None:
    with FakeBackend(fail=lambda request: ValueError("no") if len(request.input_ids) == 3 else None) as backend:
        handle = backend.submit(request("abc"))
        with pytest.raises(ValueError, match="no"):
            handle.result(WAIT_S)
        assert backend.submit(request("ab")).result(WAIT_S).text


def test_what_a_reply_raises_ends_its_request() -> None:
    with FakeBackend(lambda ids, params: {}["missing"]) as backend, pytest.raises(KeyError, match="missing"):
        backend.submit(request()).result(WAIT_S)


def test_a_budget_cuts_the_reply() -> None:
    with FakeBackend(lambda ids, params: "abcdef") as backend:
        result = backend.submit(request(max_new_tokens=4)).result(WAIT_S)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("abcd", FinishReason.LENGTH, 4)


def test_the_earliest_stop_string_cuts_the_reply() -> None:
    with FakeBackend(lambda ids, params: "one, two. three") as backend:
        result = backend.submit(request(stop=[".", ","])).result(WAIT_S)
    assert (result.text, result.matched_stop, result.usage.completion_tokens) == ("one", ",", 4)


def test_an_empty_reply_has_no_deltas() -> None:
    with FakeBackend(lambda ids, params: "") as backend:
        handle = backend.submit(request())
        assert list(handle) == []
        assert handle.result(0).text == ""


def test_deltas_carry_every_token_once() -> None:
    with FakeBackend(lambda ids, params: "déjà vu, 日本語") as backend:
        handle = backend.submit(request())
        deltas = list(handle)
    assert len(deltas) > 1
    assert sum((delta.token_ids for delta in deltas), ()) == handle.result(0).token_ids


def test_aborting_ends_a_waiting_request_and_leaves_its_late_reply_without_effect() -> None:
    gate = threading.Event()
    with FakeBackend(lambda ids, params: str(gate.wait(WAIT_S))) as backend:
        handle = backend.submit(request())
        handle.abort()
        assert handle.result(WAIT_S).finish_reason is FinishReason.ABORT
        gate.set()
        assert handle.result(0).text == ""


def test_aborting_a_scoring_fails_it() -> None:
    with FakeBackend(latency_s=WAIT_S) as backend:
        handle = backend.score(ScoreRequest((1,), ((2,),)))
        handle.abort()
        with pytest.raises(RequestAborted):
            handle.result(WAIT_S)


def test_closing_fails_what_is_pending_and_refuses_the_rest() -> None:
    backend = FakeBackend(latency_s=WAIT_S)
    handle = backend.submit(request())
    backend.close()
    with pytest.raises(EngineShutdown):
        handle.result(WAIT_S)
    for refused in (
        lambda: backend.submit(request()),
        lambda: backend.score(ScoreRequest((1,), ((2,),))),
        lambda: backend.prefetch(PrefetchRequest((1,))),
    ):
        with pytest.raises(EngineShutdown):
            refused()


def test_scores_depend_on_what_stands_before_a_token_and_on_nothing_else() -> None:
    with FakeBackend() as backend:
        first = backend.score(ScoreRequest((1, 2), ((3, 4), (3, 5)))).result(WAIT_S).token_logprobs
        longer = backend.score(ScoreRequest((1, 2, 3), ((4,),))).result(WAIT_S).token_logprobs
        other = backend.score(ScoreRequest((2, 2), ((3, 4),))).result(WAIT_S).token_logprobs
    assert first[0][0] == first[1][0]
    assert longer[0][0] == first[0][1]
    assert other[0] != first[0]


def test_each_of_several_completions_is_a_reply_of_its_own() -> None:
    seeds = []

    def reply(ids: tuple[int, ...], params: SamplingParams) -> str:
        seeds.append(params.seed)
        return f"reply {len(seeds)}"

    with FakeBackend(reply) as backend:
        results = backend.submit(request(n=3, temperature=1.0)).result(WAIT_S)
        assert backend.submit(request(temperature=1.0, seed=5)).result(WAIT_S).seed == 5
    assert [result.text for result in results] == ["reply 1", "reply 2", "reply 3"]
    assert [result.seed for result in results] == seeds[:3]
    assert len(set(seeds)) == 4


def test_aborting_several_completions_ends_all_of_them() -> None:
    with FakeBackend(latency_s=WAIT_S) as backend:
        handle = backend.submit(request(n=2))
        handle.abort()
        assert [result.finish_reason for result in handle.result(WAIT_S)] == [FinishReason.ABORT] * 2


def test_healing_changes_neither_what_a_reply_sees_nor_the_text() -> None:
    with FakeBackend(lambda ids, params: f"{bytes(ids).decode()}|") as backend:
        plain = backend.submit(request("hi  ")).result(WAIT_S)
        healed = backend.submit(replace(request("hi "), heal=" ")).result(WAIT_S)
    assert healed.text == plain.text == "hi  |"
    assert healed.token_ids == plain.token_ids
    assert (healed.healed_ids, plain.healed_ids) == (tuple(b" "), ())
    assert healed.usage == plain.usage


def test_a_stop_string_is_not_found_in_healed_text() -> None:
    with FakeBackend(lambda ids, params: "one two") as backend:
        result = backend.submit(replace(request(stop=" "), heal=" ")).result(WAIT_S)
    assert (result.text, result.token_ids, result.healed_ids) == ("one", tuple(b"one"), tuple(b" "))


def test_a_budget_counts_what_comes_behind_healed_text() -> None:
    with FakeBackend(lambda ids, params: "abcdef") as backend:
        result = backend.submit(replace(request(max_new_tokens=2), heal="  ")).result(WAIT_S)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("ab", FinishReason.LENGTH, 2)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"stop_regex": "[0-9]+"}, "one "),
        ({"stop_regex": "[0-9]+", "stop": "n"}, "o"),
        ({"stop_regex": "o", "stop": "n"}, ""),
        ({"stop_regex": "x*"}, "one 22 two"),
    ],
)
def test_whatever_ends_first_of_a_stop_pattern_and_the_stop_strings_cuts_the_reply(params: dict, text: str) -> None:
    with FakeBackend(lambda ids, params: "one 22 two") as backend:
        assert backend.submit(request(**params)).result(WAIT_S).text == text


def test_a_broken_stop_pattern_is_refused() -> None:
    with FakeBackend() as backend, pytest.raises(GrammarError, match="stop_regex"):
        backend.submit(request(stop_regex="(secret"))


def test_constraints_are_refused_unless_a_reply_honours_them() -> None:
    constraints = ({"regex": "a"}, {"json_schema": {}}, {"grammar": "start: /a/"}, {"choices": ["a"]})
    with FakeBackend() as without, FakeBackend(lambda ids, params: "a") as backend:
        for constraint in constraints:
            with pytest.raises(NotYetAvailableError, match=next(iter(constraint))):
                without.submit(request(**constraint))
            assert backend.submit(request(**constraint)).result(WAIT_S).text == "a"


def test_reported_log_probabilities_are_those_that_scoring_gives() -> None:
    with FakeBackend() as backend:
        result = backend.submit(request("abc", logprobs=2, prompt_logprobs=True)).result(WAIT_S)
        scored = backend.score(ScoreRequest(tuple(b"a"), (tuple(b"bc") + result.token_ids,))).result(WAIT_S)
        reported = (*result.prompt_logprobs[1:], *result.logprobs)
        assert tuple(entry.logprob for entry in reported) == scored.token_logprobs[0]


def test_scoring_nothing_is_refused() -> None:
    with FakeBackend() as backend, pytest.raises(InvalidArgumentError, match="continuations"):
        backend.score(ScoreRequest((1,), ()))


def test_its_threads_go_when_there_is_no_work() -> None:
    with FakeBackend() as backend:
        backend.submit(request()).result(WAIT_S)
        threads = [thread for thread in threading.enumerate() if thread.name == "sgl-fake-backend"]
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert backend.submit(request()).result(WAIT_S).text

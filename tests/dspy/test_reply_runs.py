"""Reply programs under way: text, ids, streams, budgets, errors and aborts. On a backend without a model."""

import asyncio
import itertools
import threading

import pytest

from sgl_core.errors import ContextLengthError, EngineStepError, InvalidArgumentError
from sgl_core.testing import FakeBackend
from sgl_core.testing.byte_codec import ByteCodec
from sgl_core.types import FinishReason, SamplingParams
from sgl_dspy.formats.reply_program import Choice, Forced, FreeText, JsonBy, JsonValue, Pattern, ReplyProgram
from sgl_dspy.running.reply_runs import submit_reply

WAIT_S = 60.0
PROMPT = tuple(b"question")
HEADER = ("[[ ##",)
END = "\n\n[[ ## completed ## ]]\n"
PROGRAM = ReplyProgram(
    (
        Forced("[[ ## why ## ]]\n"),
        FreeText("why", HEADER),
        Forced("\n\n[[ ## team ## ]]\n"),
        Choice("team", ("bug", "billing")),
        Forced(END),
    )
)


def scripted(ids, params):
    """Free text that runs into a header; else the first thing that is allowed."""
    if params.choices is not None:
        return params.choices[0]
    if params.json_schema is not None:
        return '{"a":1}'
    return "because  \n\n[[ ## team ## ]] nonsense"


def submit(program=PROGRAM, backend=None, max_tokens=1000, **options):
    params = SamplingParams(max_new_tokens=max_tokens, **options)
    return submit_reply(program, PROMPT, params, backend or FakeBackend(scripted))


def test_a_reply_is_forced_text_and_values_one_after_the_other():
    result = submit().result(WAIT_S)
    assert result.text == "[[ ## why ## ]]\nbecause\n\n[[ ## team ## ]]\nbug\n\n[[ ## completed ## ]]\n"
    assert bytes(result.token_ids).decode() == result.text
    assert result.finish_reason is FinishReason.STOP


def test_usage_counts_forced_text_as_output():
    result = submit().result(WAIT_S)
    assert result.usage.prompt_tokens == len(PROMPT)
    assert result.usage.completion_tokens == len(result.token_ids)


def test_every_request_goes_on_where_the_reply_stands():
    backend = FakeBackend(scripted)
    submit(backend=backend).result(WAIT_S)
    first, second = (bytes(request.input_ids).decode() for request in backend.requests)
    assert first == "question[[ ## why ## ]]\n"
    assert second == first + "because\n\n[[ ## team ## ]]\n"


def test_forced_text_streams_as_pieces_of_its_own():
    pieces = [delta.text for delta in submit()]
    assert pieces[0] == "[[ ## why ## ]]\n"
    assert pieces[-1] == END
    assert "".join(pieces) == submit().result(WAIT_S).text


def test_a_reply_can_be_awaited():
    async def wait():
        return await submit()

    assert asyncio.run(wait()).text.endswith(END)


def test_a_stop_of_the_caller_ends_free_text_and_nothing_else():
    backend = FakeBackend(lambda ids, params: params.choices[0] if params.choices else "bec|ause")
    assert "bec\n\n[[ ## team" in submit(backend=backend, stop=("|",)).result(WAIT_S).text
    assert [request.params.stop for request in backend.requests] == [("|",), ()]


def test_a_stop_pattern_of_the_caller_holds_beside_the_headers():
    backend = FakeBackend(lambda ids, params: params.choices[0] if params.choices else "because 12")
    assert "because\n\n[[" in submit(backend=backend, stop_regex=r" \d+").result(WAIT_S).text


def test_the_chosen_value_decides_about_the_next_schema():
    schemas = {"add": {"type": "object", "title": "add"}, "end": {"type": "object", "title": "end"}}
    program = ReplyProgram((Choice("tool", ("add", "end")), Forced(" "), JsonBy("args", "tool", schemas)))
    backend = FakeBackend(scripted)
    assert submit(program, backend).result(WAIT_S).text == 'add {"a":1}'
    assert backend.requests[1].params.json_schema == schemas["add"]


def test_free_text_leaves_later_fields_their_room():
    backend = FakeBackend(lambda ids, params: params.choices[0] if params.choices else "x" * 1000)
    result = submit(backend=backend, max_tokens=120).result(WAIT_S)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.text.endswith("\n\n[[ ## team ## ]]\nbug" + END)
    assert 100 <= len(result.token_ids) <= 120


@pytest.mark.parametrize("max_tokens", range(70, 140, 7))
def test_a_reply_never_exceeds_its_budget_and_is_always_whole(max_tokens):
    program = ReplyProgram(
        (
            Forced("[[a]]"),
            FreeText("a", HEADER),
            Forced("[[b]]"),
            FreeText("b", HEADER),
            Forced("[[c]]"),
            JsonValue("c", {"type": "object"}),
            Forced("[[d]]"),
            Pattern("d", r"\d{1,3}"),
            Forced("[[end]]"),
        )
    )

    def greedy(ids, params):
        return "7" * min(3, params.max_new_tokens) if params.regex == r"\d{1,3}" else "y" * 500

    result = submit(program, FakeBackend(greedy), max_tokens=max_tokens).result(WAIT_S)
    assert len(result.token_ids) <= max_tokens
    order = [result.text.index(header) for header in ("[[a]]", "[[b]]", "[[c]]", "[[d]]", "[[end]]")]
    assert order == sorted(order)
    for header, end in itertools.pairwise(order):
        assert end - header > len("[[a]]")


def test_a_budget_below_the_shortest_reply_is_refused_with_the_number_that_would_do():
    with pytest.raises(InvalidArgumentError, match="max_tokens: got 20, expected at least") as refused:
        submit(max_tokens=20)
    least = int(refused.value.expected.split()[2].strip(","))
    assert submit(max_tokens=least).result(WAIT_S).text.endswith(END)


def test_a_reply_that_does_not_fit_the_context_says_so():
    class Narrow(FakeBackend):
        capabilities = FakeBackend.capabilities.__class__(cached_tokens=False, context_tokens=40)

    with pytest.raises(ContextLengthError):
        submit(backend=Narrow(scripted), max_tokens=32)


def test_an_error_of_a_request_is_the_replys():
    failing = FakeBackend(scripted, fail=lambda request: EngineStepError("step") if request.params.choices else None)
    with pytest.raises(EngineStepError):
        submit(backend=failing).result(WAIT_S)


def test_an_aborted_reply_keeps_what_it_has_and_asks_for_nothing_more():
    running, go_on = threading.Event(), threading.Event()

    def slow(ids, params):
        running.set()
        assert go_on.wait(WAIT_S)
        return "never"

    backend = FakeBackend(slow)
    handle = submit(backend=backend)
    assert running.wait(WAIT_S)
    handle.abort()
    result = handle.result(WAIT_S)
    go_on.set()
    assert result.finish_reason is FinishReason.ABORT
    assert result.text == "[[ ## why ## ]]\n"
    assert len(backend.requests) == 1


def test_replies_take_no_thread_while_they_wait():
    go_on = threading.Event()

    def slow(ids, params):
        assert go_on.wait(WAIT_S)
        return scripted(ids, params)

    backend = FakeBackend(slow)
    before = threading.active_count()
    handles = [submit(backend=backend) for _ in range(200)]
    assert threading.active_count() <= before + 12
    go_on.set()
    assert {handle.result(WAIT_S).finish_reason for handle in handles} == {FinishReason.STOP}


def test_with_a_seed_a_reply_is_reproducible_and_its_fields_have_noise_of_their_own():
    backends = [FakeBackend(scripted) for _ in range(2)]
    for backend in backends:
        submit(backend=backend, seed=5, temperature=1.0).result(WAIT_S)
    seeds = [[request.params.seed for request in backend.requests] for backend in backends]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 2


def test_a_codec_that_fails_at_the_end_of_a_reply_fails_the_reply():
    class Failing(ByteCodec):
        num_ends = 0

        def encode(self, text):
            self.num_ends += text.endswith("[[ ## completed ## ]]\n")
            if self.num_ends > 1:  # the first time it is only counted
                raise ValueError("no such token")
            return super().encode(text)

    handle = submit(backend=FakeBackend(scripted, codec=Failing()))
    with pytest.raises(ValueError, match="no such token"):
        handle.result(WAIT_S)

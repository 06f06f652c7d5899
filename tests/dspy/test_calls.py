"""Requests made ready: prompts, candidates, tools, log-probabilities of forced replies, and what the caller says of the cache."""

import dataclasses
import itertools

import pytest
from dspy import lm15

from sgl_core.chat.tools import CALL_OPENING
from sgl_core.errors import ContextLengthError, InvalidArgumentError, RequestAborted
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenDelta, Hints, ScoreResult, Usage
from sgl_dspy.formats.reply_program import Forced, FreeText, ReplyProgram
from sgl_dspy.requests.calls import prepare
from sgl_dspy.running.prefix_pins import PrefixPins

WAIT_S = 60.0
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = (lm15.FunctionTool("add", "Adds.", SCHEMA), lm15.FunctionTool("sub", "Subtracts.", SCHEMA))
CALL = '{"name": "add", "arguments": {"x": 1}}'
PROGRAM = ReplyProgram((Forced("A: "), FreeText("a")))


def calling(text="Add.", *, tools=TOOLS, mode="auto", allowed=(), parallel=None, **config):
    choice = lm15.ToolChoice(mode, allowed, parallel)
    return lm15.Request("sgl/x", (lm15.Message.user(text),), tools=tools, config=lm15.Config(tool_choice=choice, **config))


def run(call, seed=None):
    return call.start(seed, Hints()).result(WAIT_S)


def verdict(call, *, is_call):
    first = -0.1 if is_call else -50.0
    others = [(-20.0,)] * (len(call.decision.continuations) - 1)
    return call.decided(ScoreResult(((first,), *others), Usage(7, 3, 0)))


# ---- prompts and candidates ------------------------------------------------------------------------------------------
def test_a_prompt_that_does_not_fit_is_an_error_without_its_text(backend, ask):
    with pytest.raises(ContextLengthError) as raised:
        prepare(ask("nonce-4711 " * 1000), backend)
    assert "nonce" not in str(raised.value)
    assert backend.requests == []


def test_a_backend_that_takes_no_ids_is_refused(ask):
    class TextOnly(FakeBackend):
        codec = None

    with pytest.raises(lm15.UnsupportedFeatureError, match="TextOnly"):
        prepare(ask(), TextOnly())


def test_a_candidate_is_submitted_with_its_seed_hints_namespace_and_deadline(backend, ask):
    own = {"namespace": "mine", "timeout_s": 30}
    call = prepare(ask(temperature=1.0, extensions={"metadata": {"sgl_options": own}}), backend)
    call.start(5, Hints(siblings=2, shared_len=call.prompt_len)).result(WAIT_S)
    (request,) = backend.requests
    assert request.input_ids == call.prompt.ids
    assert (request.params.seed, request.hints.siblings, request.namespace, request.timeout_s) == (5, 2, "mine", 30)


def test_only_requests_without_chance_share_a_flight(backend, ask):
    greedy, warm = prepare(ask(), backend), prepare(ask(temperature=1.0), backend)
    assert greedy.flight_key(None) == prepare(ask(), backend).flight_key(None)
    assert warm.flight_key(None) is None
    assert warm.flight_key(3) == prepare(ask(temperature=1.0), backend).flight_key(3) != warm.flight_key(4)


def test_whatever_changes_a_result_is_in_the_key_of_a_flight(backend, ask):
    own = [{"regex": "a"}, {"namespace": "mine"}, {"timeout_s": 3}]
    requests = [ask(), ask("Other"), ask(logprobs=0), ask(max_tokens=3)]
    requests += [ask(extensions={"metadata": {"sgl_options": one}}) for one in own]
    requests.append(ask(extensions={"metadata": {"sgl_program": PROGRAM.to_json()}}))
    keys = [prepare(request, backend).flight_key(None) for request in requests]
    assert all(one != other for one, other in itertools.combinations(keys, 2))


# ---- history ---------------------------------------------------------------------------------------------------------
def test_a_second_turn_begins_with_the_ids_of_the_first_and_of_its_reply(ask):
    class Odd(FakeBackend):
        """Spells its replies as encoding their text never would."""

        def _result(self, *args):
            result = super()._result(*args)
            return dataclasses.replace(result, token_ids=(*result.token_ids, 0))

    backend = Odd(reply=lambda ids, params: "Blue.")
    first = prepare(ask("Colour?"), backend)
    result = run(first)
    response = first.response(ask("Colour?"), "id", result)
    messages = (lm15.Message.user("Colour?"), lm15.Message.assistant(response.text + "\n"), lm15.Message.user("Why?"))
    second = prepare(lm15.Request("sgl/x", messages), backend)
    said = first.prompt.ids + result.token_ids
    assert second.prompt.ids[: len(said)] == said


def test_a_call_and_its_result_are_found_again_as_the_ids_they_were(backend):
    fake = FakeBackend(reply=lambda ids, params: CALL)
    request = calling(mode="required")
    call = prepare(request, fake)
    result = run(call)
    message = call.response(request, "id", result).message
    (part,) = message.parts
    messages = (*request.messages, message, lm15.Message.tool(part.id, "2"))
    second = prepare(lm15.Request("sgl/x", messages, tools=TOOLS), fake)
    said = call.prompt.ids + result.token_ids
    assert second.prompt.ids[: len(said)] == said
    assert second.follows_result


def test_an_aborted_reply_is_an_error_and_is_not_remembered(backend, ask):
    call = prepare(ask(), backend)
    aborted = dataclasses.replace(run(call), finish_reason=FinishReason.ABORT)
    with pytest.raises(RequestAborted):
        call.response(ask(), "id", aborted)
    with pytest.raises(RequestAborted):
        call.events().end(aborted)


# ---- tools -----------------------------------------------------------------------------------------------------------
def test_a_required_call_is_opened_and_held_to_the_tools(backend):
    call = prepare(calling(mode="required"), backend)
    assert call.is_decided
    assert call.prompt.opening == CALL_OPENING
    assert "anyOf" in call.params.json_schema


def test_a_call_of_one_tool_is_held_to_that_tool_and_the_prompt_stays_the_same(backend):
    one, both = prepare(calling(mode="required", allowed=("sub",)), backend), prepare(calling(mode="required"), backend)
    assert one.prompt.ids == both.prompt.ids
    assert one.params.json_schema["properties"]["name"] == {"const": "sub"}


def test_several_calls_at_once_are_a_grammar(backend):
    assert prepare(calling(mode="required", parallel=True), backend).params.grammar is not None


def test_no_call_is_text(backend):
    call = prepare(calling(mode="none"), backend)
    assert call.is_decided
    assert call.prompt.opening == ""
    assert call.params.json_schema is None


def test_a_free_choice_is_decided_by_a_score(backend):
    call = prepare(calling(), backend)
    assert not call.is_decided
    assert call.decision.input_ids == call.prompt.ids
    assert verdict(call, is_call=True).prompt.opening == CALL_OPENING
    assert verdict(call, is_call=False).prompt.opening == ""


def test_usage_of_a_decided_call_counts_the_opening_as_said_and_what_the_score_found(backend):
    class Counting(FakeBackend):
        capabilities = dataclasses.replace(FakeBackend.capabilities, cached_tokens=True)

    fake = Counting(reply=lambda ids, params: CALL)
    undecided = prepare(calling(), fake)
    call = verdict(undecided, is_call=True)
    usage = call.usage(run(call))
    assert (usage.input_tokens, usage.cache_read_tokens) == (undecided.prompt_len, 3)
    assert usage.output_tokens == len(CALL_OPENING) + len(CALL) + 1


def test_what_stops_text_does_not_stop_a_call(backend):
    own = {"min_tokens": 5, "stop_token_ids": [65], "regex": "a"}
    request = calling(mode="required", stop=("}",), extensions={"metadata": {"sgl_options": own}})
    params = prepare(request, backend).params
    assert (params.stop, params.stop_token_ids, params.min_new_tokens, params.regex) == ((), (), 0, None)


def test_a_program_is_for_text_and_not_for_a_call(backend):
    request = calling(extensions={"metadata": {"sgl_program": PROGRAM.to_json()}})
    call = prepare(request, backend)
    assert verdict(call, is_call=False).program == PROGRAM
    assert verdict(call, is_call=True).program is None


def test_an_opening_that_no_longer_fits_is_a_context_error(backend):
    size = prepare(calling("x", mode="none"), backend).prompt_len
    text = "x" * (backend.capabilities.context_tokens - size)
    assert prepare(calling(text, mode="none"), backend).params.max_new_tokens == 1
    with pytest.raises(ContextLengthError):
        prepare(calling(text, mode="required"), backend)


def test_a_reply_that_calls_is_parts_and_says_so(backend):
    request = calling(mode="required")
    fake = FakeBackend(reply=lambda ids, params: CALL)
    call = prepare(request, fake)
    response = call.response(request, "id", run(call))
    (part,) = response.message.parts
    assert (part.name, part.input, response.finish_reason) == ("add", {"x": 1}, "tool_call")


def test_calls_that_a_model_writes_by_itself_are_calls_and_broken_ones_are_text(backend):
    request = calling(mode="none")
    good, bad = f"I add.\n{CALL_OPENING}{CALL}\n</tool_call>", f"{CALL_OPENING}nonsense\n</tool_call>"
    parts = {}
    for text in (good, bad):
        fake = FakeBackend(reply=lambda ids, params, text=text: text)
        call = prepare(request, fake)
        parts[text] = call.response(request, "id", run(call)).message.parts
    assert [part.type for part in parts[good]] == ["text", "tool_call"]
    assert [part.type for part in parts[bad]] == ["text"]
    assert "nonsense" in parts[bad][0].text


def test_events_of_a_call_add_up_to_its_response(backend):
    request = calling(mode="required")
    fake = FakeBackend(reply=lambda ids, params: CALL)
    call = prepare(request, fake)
    handle = call.start(None, Hints())
    reader = call.events()
    events = [reader.start(request, "id")]
    for delta in handle:
        events += reader.deltas(delta)
    events += reader.end(handle.result(WAIT_S))
    assert {event.delta.type for event in events[1:-1]} == {"tool_call"}
    assert sum(event.delta.name is not None for event in events[1:-1]) == 1
    assert "".join(event.delta.input for event in events[1:-1]) == '{"x": 1}'
    assert events[-1].finish_reason == "tool_call"


def test_a_piece_without_text_is_no_event(backend, ask):
    assert prepare(ask(), backend).events().deltas(GenDelta("", (1,))) == []


@pytest.mark.parametrize(
    ("tools", "error"),
    [
        ((lm15.BuiltinTool("web_search"),), lm15.UnsupportedFeatureError),
        ((lm15.FunctionTool("a b", None, SCHEMA),), InvalidArgumentError),
        ((lm15.FunctionTool("a", None, {"type": "string"}),), InvalidArgumentError),
    ],
)
def test_what_is_no_tool_of_ours_is_refused_by_its_place(backend, tools, error):
    with pytest.raises(error, match=r"tools\[0\]"):
        prepare(lm15.Request("sgl/x", (lm15.Message.user("Hi"),), tools=tools), backend)


def test_a_call_without_tools_cannot_be_demanded(backend, ask):
    with pytest.raises(InvalidArgumentError, match="tool_choice"):
        prepare(ask(tool_choice=lm15.ToolChoice("required")), backend)


# ---- log-probabilities of a forced reply -----------------------------------------------------------------------------
def test_every_token_of_a_forced_reply_has_its_score(ask):
    fake = FakeBackend(reply=lambda ids, params: "yes")
    request = ask(logprobs=0, max_tokens=60, extensions={"metadata": {"sgl_program": PROGRAM.to_json()}})
    call = prepare(request, fake)
    result = run(call)
    scoring = call.scoring(result)
    assert scoring.continuations == (result.token_ids,)
    response = call.response(request, "id", call.scored(result, fake.score(scoring).result(WAIT_S)))
    assert "".join(token.token for token in response.logprobs) == response.text == "A: yes"


def test_nothing_is_scored_where_nobody_asks(backend, ask):
    plain = prepare(ask(logprobs=0), backend)
    assert plain.scoring(run(plain)) is None


# ---- the prompt cache ------------------------------------------------------------------------------------------------
class Pinning(FakeBackend):
    """Remembers what it was asked to pin."""

    def __init__(self, **options):
        self.pinned = []
        super().__init__(**options)

    def pin(self, prompt, *, namespace=None):
        self.pinned.append((tuple(prompt), namespace))
        raise AssertionError("nothing pins while a request is prepared")


def talk(**cache):
    messages = (lm15.Message.user("one"), lm15.Message.assistant("two"), lm15.Message.user("three"))
    return lm15.Request("sgl/x", messages, system="s", config=lm15.Config(cache=lm15.CacheConfig(**cache)))


def test_wishes_that_are_granted_anyway_change_nothing(backend):
    plain = prepare(talk(), backend)
    for wish in ({"prefix": "stable"}, {"prefix": "history"}, {"prefix_until_index": 1}, {"retention": "short"}):
        assert prepare(talk(**wish), backend) == plain


def test_off_shares_with_nobody_not_even_with_itself_and_leaves_nothing(backend):
    one, other = prepare(talk(mode="off"), backend), prepare(talk(mode="off"), backend)
    assert None not in (one.namespace, other.namespace)
    assert one.namespace != other.namespace
    one.start(None, Hints(siblings=3)).result(WAIT_S)
    hints = backend.requests[0].hints
    assert (hints.last_use, hints.keep_len, hints.siblings) == (True, 0, 3)


def test_requests_that_are_off_still_share_a_flight(backend):
    one, other = prepare(talk(mode="off"), backend), prepare(talk(mode="off"), backend)
    assert one.flight_key(None) == other.flight_key(None) != prepare(talk(), backend).flight_key(None)


def test_off_beside_a_namespace_is_refused(backend, ask):
    own = {"metadata": {"sgl_options": {"namespace": "mine"}}}
    with pytest.raises(InvalidArgumentError, match="namespace"):
        prepare(ask(cache=lm15.CacheConfig(mode="off"), extensions=own), backend)


def test_long_keeps_what_the_caller_expects_again():
    fake = Pinning()
    kept = {
        name: prepare(talk(retention="long", **wish), fake).keeps
        for name, wish in {
            "stable": {},
            "first": {"prefix_until_index": 0},
            "second": {"prefix_until_index": 1},
            "all": {"prefix": "history"},
        }.items()
    }
    whole = prepare(talk(), fake).prompt.ids
    assert all(whole[: len(ids)] == ids for ids in kept.values())
    sizes = [len(kept[name]) for name in ("stable", "first", "second", "all")]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(whole)


def test_long_keeps_the_messages_that_a_program_shares():
    fake = Pinning()
    program = dataclasses.replace(PROGRAM, shared=(0, 3)).to_json()
    request = talk(retention="long")
    config = dataclasses.replace(request.config, extensions={"sgl_program": program})
    kept = prepare(dataclasses.replace(request, config=config), fake).keeps
    assert kept == prepare(talk(retention="long", prefix_until_index=1), fake).keeps


def test_long_is_refused_where_nothing_can_be_pinned(backend):
    with pytest.raises(lm15.UnsupportedFeatureError) as raised:
        prepare(talk(retention="long"), backend)
    assert raised.value.feature == "config.cache.retention"


def test_a_message_that_is_not_there_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="prefix_until_index"):
        prepare(talk(prefix_until_index=3), backend)


def test_a_resource_brings_its_namespace_and_must_fit_the_prompt(backend, ask):
    pins = PrefixPins()
    ids = prepare(talk(), backend).prompt.ids[:4]
    resource = pins.keep(backend, ids, "mine")[0].resource
    assert prepare(talk(resource=resource), backend, pins).namespace == "mine"
    with pytest.raises(InvalidArgumentError, match="resource"):
        prepare(ask(cache=lm15.CacheConfig(resource=resource)), backend, pins)
    with pytest.raises(InvalidArgumentError, match=r"prompt_cache\.key"):
        prepare(talk(resource=resource, key="yours"), backend, pins)


def test_an_unknown_resource_is_refused_with_the_cure(backend):
    with pytest.raises(InvalidArgumentError, match="prefetch"):
        prepare(talk(resource="sgl-nothing"), backend, PrefixPins())

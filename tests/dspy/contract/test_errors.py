"""What users see when something fails, what is retried, and what passes through untouched."""

import asyncio
import warnings

import dspy
import pytest
from dspy import lm15

from sgl_core import errors
from sgl_dspy.formats.reply_program import PROGRAM_KEY
from sgl_dspy.lm import SglLM

SHOWN = [
    (errors.ContextLengthError(9, None, 8, "the context"), dspy.ContextWindowExceededError),
    (errors.InvalidArgumentError("top_p", 0, "more"), dspy.LMInvalidRequestError),
    (errors.GrammarError("regex", "it cannot match"), dspy.LMInvalidRequestError),
    (errors.TemplateError("no such role"), dspy.LMInvalidRequestError),
    (errors.NotYetAvailableError("later"), dspy.LMUnsupportedFeatureError),
    (errors.UnsupportedModelError("not this one"), dspy.LMUnsupportedModelError),
    (errors.DeadlineExceeded("too late"), dspy.LMTimeoutError),
    (errors.QueueFull("come back"), dspy.LMRateLimitError),
    (errors.EngineShutdown("closed"), dspy.LMServerError),
    (errors.EngineStepError("a step failed"), dspy.LMServerError),
    (errors.NumericsError("NaN"), dspy.LMUnexpectedError),
    (errors.PoolExhaustedError("full"), dspy.LMUnexpectedError),
    (ZeroDivisionError("a bug"), dspy.LMUnexpectedError),
]
RETRIED = (dspy.LMTimeoutError, dspy.LMRateLimitError, dspy.LMServerError)


@pytest.fixture
def failing(scripted):
    """``failing(*outcomes)``: an LM whose requests end so, one after the other; None is an answer."""

    def make(*outcomes, **options):
        left = list(outcomes)
        return SglLM(backend=scripted(fail=lambda request: left.pop(0) if left else None), **options)

    return make


@pytest.mark.parametrize(("ours", "shown"), SHOWN, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_a_user_sees_dspys_error_with_the_whole_chain(failing, ours, shown):
    lm = failing(ours)
    with pytest.raises(shown) as raised:
        lm("Hello")
    assert type(raised.value) is shown
    chain = []
    error = raised.value
    while error is not None:
        chain.append(error)
        error = error.__cause__
    assert chain[-1] is ours
    assert raised.value.model == lm.model


@pytest.mark.parametrize(("ours", "shown"), SHOWN, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_an_awaited_call_fails_in_the_same_way(failing, ours, shown):
    with pytest.raises(shown) as raised:
        asyncio.run(failing(ours).acall("Hello"))
    assert type(raised.value) is shown


@pytest.mark.parametrize(("ours", "shown"), SHOWN, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_only_what_may_pass_is_retried(failing, no_delay, ours, shown):
    lm = failing(ours, num_retries=2)
    if shown in RETRIED:
        assert lm("Hello")
        assert no_delay == [0]
    else:
        with pytest.raises(shown):
            lm("Hello")
        assert no_delay == []


def test_retries_are_counted_and_end(failing, no_delay):
    busy = errors.QueueFull("come back")
    assert failing(busy, busy, num_retries=2, cache=False)("Hello")
    with pytest.raises(dspy.LMRateLimitError):
        failing(busy, busy, busy, num_retries=2, cache=False)("Hello")
    assert no_delay == [0, 1, 0, 1]


def test_nothing_is_retried_unless_asked(failing, no_delay):
    with pytest.raises(dspy.LMRateLimitError):
        failing(errors.QueueFull("come back"))("Hello")
    assert no_delay == []


def test_an_unexpected_error_names_no_prompt_text(lm):
    with pytest.raises(dspy.ContextWindowExceededError) as raised:
        lm("nonce-4711 " * 20_000)
    assert "nonce" not in str(raised.value)


def test_a_missing_extra_is_the_same_import_error(failing):
    missing = errors.MissingExtraError("runtime", "torch")
    with pytest.raises(ImportError) as raised:
        failing(missing)("Hello")
    assert raised.value is missing


def test_a_warning_that_was_made_an_error_is_the_same_warning(failing):
    warning = UserWarning("careful")
    with warnings.catch_warnings(), pytest.raises(UserWarning) as raised:
        failing(warning)("Hello")
    assert raised.value is warning


def test_a_cancellation_is_a_cancellation(scripted):
    lm = SglLM(backend=scripted(latency_s=600))

    async def cancelled():
        task = asyncio.ensure_future(lm.acall("Hello"))
        while not lm.engine.backend.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(cancelled(), 60))
    assert lm.history == []


def test_usage_of_candidates_before_a_failure_is_tracked(failing):
    lm = failing(None, ZeroDivisionError("a bug"))
    with dspy.utils.usage_tracker.track_usage() as tracker, pytest.raises(dspy.LMUnexpectedError):
        lm("Hello", n=2, temperature=1.0)
    assert tracker.get_total_tokens()[lm.model]["prompt_tokens"] > 0


# ---- what is refused, by name ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "option",
    [
        {"reasoning_effort": "low"},
        {"prediction": {"type": "content", "content": "x"}},
        {"service_tier": "flex"},
        {"store": True},
        {"verbosity": "low"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_we_lack_is_refused_and_never_dropped(lm, fake, option):
    with pytest.raises(dspy.LMUnsupportedFeatureError) as raised:
        lm("Hello", **option)
    assert raised.value.feature or raised.value.features
    assert fake.requests == []


def test_media_is_refused_by_place(lm, fake):
    picture = lm15.ImagePart("image/png", url="https://example.org/a.png")
    with pytest.raises(dspy.LMUnsupportedFeatureError) as raised:
        lm(lm15.Request(lm.model, (lm15.Message.user(["look", picture]),)))
    assert raised.value.feature == "messages[0].parts[1]"
    assert fake.requests == []


@pytest.mark.parametrize("plan", [{"v": 2, "reply": []}, "gen", {"v": 1, "reply": []}, {"v": 1, "reply": [{"gen": "x"}]}])
def test_a_plan_that_nobody_wrote_is_a_bad_request(lm, fake, plan):
    with pytest.raises(dspy.LMInvalidRequestError, match=PROGRAM_KEY):
        lm("Hello", metadata={PROGRAM_KEY: plan})
    assert fake.requests == []


def test_metadata_that_is_none_of_ours_is_a_note(lm, fake):
    assert lm("Hello", metadata={"run": "7"}) == lm("Hello")
    assert len(fake.requests) == 2


# ---- the context -----------------------------------------------------------------------------------------------------
def test_a_prompt_that_does_not_fit_is_refused_before_any_computation(lm, fake):
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("x" * fake.capabilities.context_tokens)
    assert (fake.requests, fake.prefetches, fake.scores) == ([], [], [])


def test_react_shortens_its_trajectory_when_the_context_is_full(scripted):
    from sgl_core.backend import Capabilities

    fake = scripted({"next_tool_name": "look", "next_tool_args": {"what": "x"}, "answer": "done"})
    fake.capabilities = Capabilities(heal=True, context_tokens=6_000)
    lm = SglLM(backend=fake, max_tokens=300)

    def look(what: str) -> str:
        """Looks."""
        return "seen " * 200

    with dspy.context(lm=lm):
        prediction = dspy.ReAct("question -> answer", tools=[look], max_iters=6)(question="why?")
    assert prediction.answer == "done"
    assert len([name for name in prediction.trajectory if name.startswith("observation")]) >= 2
    assert all(len(request.input_ids) < 6_000 for request in fake.requests)

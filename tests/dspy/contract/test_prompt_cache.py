"""``prompt_cache=CacheConfig(...)`` on our tree, ``lm.prefetch``, and what the candidates of one call share."""

import dspy
import pytest
from dspy.lm15 import CacheConfig

from sgl_dspy.lm import SglLM


def namespaces(fake):
    return [request.namespace for request in fake.requests]


@pytest.mark.parametrize(
    "config",
    [
        CacheConfig(),
        CacheConfig(prefix="stable"),
        CacheConfig(prefix="history"),
        CacheConfig(prefix_until_index=0),
        CacheConfig(retention="short"),
        CacheConfig(mode="off"),
        CacheConfig(key="mine"),
    ],
    ids=repr,
)
def test_every_wish_is_accepted_and_changes_no_text(lm, config):
    assert lm("Hello", cache=False, prompt_cache=config) == lm("Hello", cache=False)


def test_a_key_keeps_prefixes_apart(lm, fake):
    lm("Hello", prompt_cache=CacheConfig(key="mine"))
    lm("Hello")
    assert namespaces(fake) == ["mine", None]


def test_off_shares_nothing_with_anybody(lm, fake):
    off = CacheConfig(mode="off")
    lm("Hello", cache=False, prompt_cache=off)
    lm("Hello", cache=False, prompt_cache=off)
    lm("Hello", cache=False)
    first, second, shared = fake.requests
    assert shared.namespace is None
    is_apart = first.namespace is not None and first.namespace != second.namespace
    assert is_apart or (first.hints.last_use and first.hints.keep_len == 0)


def test_a_default_of_the_lm_is_overridden_by_a_call(fake):
    lm = SglLM(backend=fake, prompt_cache=CacheConfig(key="default"), cache=False)
    lm("Hello")
    lm("Hello", prompt_cache=CacheConfig(key="other"))
    lm("Hello", prompt_cache=None)
    assert namespaces(fake) == ["default", "other", None]


def test_predictors_carry_it(lm, fake):
    dspy.Predict("question -> answer", prompt_cache=CacheConfig(key="mine"))(question="why?")
    assert namespaces(fake) == ["mine"]


def test_long_retention_is_refused_by_a_backend_that_cannot_pin(lm, fake):
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="retention"):
        lm("Hello", prompt_cache=CacheConfig(retention="long"))
    assert fake.requests == []


def test_what_is_no_cache_config_is_refused(lm, fake):
    with pytest.raises(TypeError, match="prompt_cache"):
        lm("Hello", prompt_cache={"key": "mine"})
    with pytest.raises(TypeError, match="prompt_cache"):
        SglLM(backend=fake, prompt_cache="mine")


def test_a_resource_that_nobody_made_is_refused_by_name(lm, fake):
    with pytest.raises(dspy.LMError, match="resource"):
        lm("Hello", prompt_cache=CacheConfig(resource="nobody-made-this"))
    assert fake.requests == []


def test_cached_tokens_are_always_told(lm):
    lm("Hello", prompt_cache=CacheConfig(key="mine"))
    assert lm.history[0]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


# ---- candidates ------------------------------------------------------------------------------------------------------
def test_eight_candidates_say_what_they_share(lm, fake):
    lm("Hello", n=8, temperature=1.0)
    assert len({request.input_ids for request in fake.requests}) == 1
    hints = [request.hints for request in fake.requests]
    assert [hint.siblings for hint in hints] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert {hint.shared_len for hint in hints} == {len(fake.requests[0].input_ids)}


def test_candidates_with_a_plan_differ_and_come_again(fake):
    from sgl_dspy.adapters import ChatAdapter

    lm = SglLM(backend=fake, seed=7, cache=False)
    predict = dspy.ChainOfThought("question -> answer", n=4, temperature=1.0)
    with dspy.context(lm=lm, adapter=ChatAdapter()):
        first, again = (predict(question="why?").completions for _ in range(2))
    assert len(set(first.answer)) == 4
    assert first.answer == again.answer
    assert first.reasoning == again.reasoning


def test_awaited_candidates_are_those_of_a_plain_call(fake):
    import asyncio

    lm = SglLM(backend=fake, seed=7, temperature=1.0, cache=False)
    assert asyncio.run(lm.acall("Hello", n=3)) == lm("Hello", n=3)


def test_a_group_is_over_with_its_call(fake):
    lm = SglLM(backend=fake, seed=7, temperature=1.0, cache=False)
    first = lm("Hello", n=3)
    assert lm("Hello") == first[:1]
    assert lm("Another", n=2) != first[:2]


def test_a_call_inside_a_callback_has_candidates_of_its_own(fake, counting):
    """The group of one call is nobody else's, also not of a call that is made while it runs."""
    inner = SglLM(backend=fake, seed=7, temperature=1.0, cache=False)

    class Asking(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            if inputs["prompt"] == "Outer":
                inner("Inner", n=2)

    lm = SglLM(backend=fake, seed=7, temperature=1.0, cache=False, callbacks=[Asking()])
    assert len(lm("Outer", n=3)) == 3
    assert sum("Inner" in prompt for prompt in fake.prompts()) == 2
    assert sum("Outer" in prompt for prompt in fake.prompts()) == 3

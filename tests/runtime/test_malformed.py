"""Malformed sampling parameters and constraints: each a typed error that names its field, and nobody else in the batch notices."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sgl_core.backend import Handle
from sgl_core.errors import ContextLengthError, GrammarError, InvalidArgumentError
from sgl_core.runtime.engine import Engine
from sgl_core.testing.tiny_models import TINY_VOCAB
from sgl_core.types import GenRequest, GenResult, Hints, SamplingParams, ScoreRequest

WAIT_S = 60.0
NAN, INF = float("nan"), float("inf")
NEIGHBOURS = [
    ("the quick brown fox", SamplingParams(max_new_tokens=16, ignore_eos=True)),
    ("a list: 1, 2, 3", SamplingParams(max_new_tokens=12, temperature=1.0, seed=3, ignore_eos=True)),
    ("the quick brown dog", SamplingParams(max_new_tokens=10, repetition_penalty=1.3, ignore_eos=True)),
    ("12 in the house", SamplingParams(max_new_tokens=14, temperature=0.7, top_k=8, top_p=0.9, seed=8)),
]

Malformed = tuple[str, Mapping[str, Any]]
Refuse = Callable[[Callable[[], object]], InvalidArgumentError]


def deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def each(argument: str, *values: Any) -> list[Malformed]:
    """One case for each value of one field."""
    return [(argument, {argument: value}) for value in values]


SAMPLING: list[Malformed] = [
    *each("max_new_tokens", 0, -1, 1.0, True, "8", 2**31, NAN),
    *each("min_new_tokens", -1, 2.5, False, "1", None, 2**40),
    ("min_new_tokens", {"min_new_tokens": 9, "max_new_tokens": 8}),
    *each("temperature", NAN, INF, -INF, -0.1, True, "0.5", None, 1e9),
    *each("top_p", NAN, 0.0, -0.5, 1.0001, True, "1", None),
    *each("top_k", 0, -2, 1.5, True, "5", None, 2**31),
    *each("min_p", NAN, INF, -0.1, 1.1, "0"),
    *each("frequency_penalty", NAN, INF, 2.1, -2.1, "0", None),
    *each("presence_penalty", NAN, -INF, 2.1, -2.1, True),
    *each("repetition_penalty", NAN, 0.0, -1.0, 2.1, "1"),
    *each("n", 0, -1, 129, 1.0, True, "2", None),
    *each("seed", -1, 2**63, 1.0, True, "7", NAN),
    *each("logprobs", -1, 101, 1.5, True, "3"),
    *each("prompt_logprobs", 1, "yes", None),
    *each("ignore_eos", 1, "no", None),
    *each("stop", 5, b"stop", ("",), ("a", 1), (None,), ("x",) * 33, {"a": "b"}),
    *each("stop_token_ids", 5, "12", (-1,), (True,), (1.0,), ("1",), (2**31,), tuple(range(1025))),
    *each("stop_token_ids", (TINY_VOCAB,), (3, 10**6)),
    *each("logit_bias", 5, [(1, 2.0)], {-1: 1.0}, {"1": 1.0}, {True: 1.0}, {1: NAN}, {1: INF}, {1: "2"}, {1: True}, {1: 1e9}),
    *each("logit_bias", {TINY_VOCAB: 1.0}, {3: 1.0, 10**6: 1.0}, dict.fromkeys(range(1025), 0.5)),
    *each("stop_regex", 5, "", b"x", "a" * 1025),
]
CONSTRAINTS: list[Malformed] = [
    *each("regex", 5, b"a+", ["a"]),
    *each("grammar", 5, b"start: /a/", {"start": "a"}),
    *each("choices", (), [], ("",), ("a", ""), ("a", 1), "abc", 5, {"a": 1}),
    ("regex and choices", {"regex": "a", "choices": ("a",)}),
    ("json_schema and grammar", {"json_schema": {}, "grammar": "start: /a/"}),
    ("regex and json_schema and grammar and choices", {"regex": "a", "json_schema": {}, "grammar": "x", "choices": ("a",)}),
]
UNCOMPILABLE: list[Malformed] = [
    *each("regex", "(", "[z-a]", "a{3,1}", "*a", r"(a)\1", "(?<=a)b", r"\p{Nope}", "a" * 70_000, "((a{1000}){1000}){1000}"),
    *each("stop_regex", "(", "[z-a]", r"(a)\1", "a*", "(b|)", "((a{1000}){1000}){1000}"),
    *each("json_schema", 5, 3.5, ["type"], "no json", "{", ..., {"type": "nonsense"}, {"type": 7}),
    *each("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, {"enum": []}, False),
    *each("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "string", "pattern": "("}),
    *each("json_schema", {"$ref": "#/$defs/absent"}, {"$ref": "http://example.org/schema"}, {"$ref": "#"}),
    *each("json_schema", deep_schema(200), {"enum": ["x" * 70_000]}),
    *each("grammar", "", "nonsense", "start: (", "start: absent", "other: /a/", "start: /(/", "start: start", "x" * 70_000),
    *each("choices", ("x" * 70_000,)),
]
TOO_LITTLE_BUDGET: list[Malformed] = [
    ("regex", {"regex": r"[0-9]{30}", "max_new_tokens": 5}),
    ("regex", {"regex": r"zq+ xv{20}", "max_new_tokens": 10}),
    ("choices", {"choices": ("zqzqzqzqzq", "xvxvxvxvxv"), "max_new_tokens": 3}),
    ("json_schema", {"json_schema": {"type": "object", "properties": {"zq": {"type": "integer"}}, "required": ["zq"]}}),
    ("json_schema", {"json_schema": json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 9})}),
    ("grammar", {"grammar": 'start: "zqzqzqzqzq" /[0-9]+/'}),
]
REQUESTS: list[Malformed] = [
    *each("heal", 5, None, b" ", [" "], "a\ud800"),
    *each("input_ids", (), (-1,), (True,), (TINY_VOCAB,), ("a",), 5, None, "abc", b"abc", {5: 6}),
    *each("namespace", 5, ["a"]),
    *each("priority", None, 1.5, True, "high"),
    *each("timeout_s", 0, -1, NAN, INF, True, "1"),
    *each("hints", "siblings", None),
]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=2_048) as engine:
        yield engine
        engine.check_invariants()
        stats = engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_failed) == (0, 0, 0)
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a refused request left slots behind"


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> list[str]:
    return [engine.submit(prompt, params).result(WAIT_S).text for prompt, params in NEIGHBOURS]


@pytest.fixture
def refuse(engine: Engine, undisturbed: list[str], figure: Callable[[str, Mapping[str, int]], None]) -> Refuse:
    """Make a call that must be refused while four requests are in flight, whose texts must be what they are without it."""

    def refuse(call: Callable[[], object]) -> InvalidArgumentError:
        neighbours: list[Handle[GenResult]] = [engine.submit(prompt, params) for prompt, params in NEIGHBOURS]
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert [handle.result(WAIT_S).text for handle in neighbours] == undisturbed
        figure("R4 malformed input", {"cases refused": 1, "neighbours unchanged": len(neighbours)})
        return caught.value

    return refuse


def submit(engine: Engine, options: Mapping[str, Any]) -> Handle[GenResult]:
    return engine.submit("refuse this", SamplingParams(**options))


def name_of(case: Malformed) -> str:
    argument, options = case
    value = repr(next(iter(options.values())))
    return f"{argument}={value if len(value) <= 40 else value[:37] + '...'}" if len(options) == 1 else argument


@pytest.mark.parametrize("case", SAMPLING, ids=name_of)
def test_a_sampling_parameter_out_of_range_is_refused_by_name(case: Malformed, engine: Engine, refuse: Refuse) -> None:
    argument, options = case
    assert refuse(lambda: submit(engine, options)).argument == argument


@pytest.mark.parametrize("case", CONSTRAINTS, ids=name_of)
def test_a_constraint_of_the_wrong_kind_is_refused_by_name(case: Malformed, engine: Engine, refuse: Refuse) -> None:
    argument, options = case
    assert refuse(lambda: submit(engine, options)).argument == argument


@pytest.mark.parametrize("case", UNCOMPILABLE, ids=name_of)
def test_a_constraint_that_cannot_be_compiled_is_refused_at_submit(case: Malformed, engine: Engine, refuse: Refuse) -> None:
    argument, options = case
    error = refuse(lambda: submit(engine, options))
    assert isinstance(error, GrammarError)
    assert error.argument == argument
    assert error.shortest_tokens is None


@pytest.mark.parametrize("case", TOO_LITTLE_BUDGET, ids=name_of)
def test_a_budget_below_the_shortest_completion_is_refused_with_its_length(
    case: Malformed, engine: Engine, refuse: Refuse
) -> None:
    argument, options = case
    budget = options.get("max_new_tokens", 4)
    error = refuse(lambda: submit(engine, {**options, "max_new_tokens": budget}))
    assert isinstance(error, GrammarError)
    assert error.argument == argument
    assert error.shortest_tokens is not None
    assert error.shortest_tokens > budget


@pytest.mark.parametrize("case", REQUESTS, ids=name_of)
def test_a_malformed_request_is_refused_by_name(case: Malformed, engine: Engine, refuse: Refuse) -> None:
    argument, fields = case
    error = refuse(lambda: engine.submit(GenRequest(**{"input_ids": (5, 6, 7), **fields})))
    assert error.argument == {"input_ids": "prompt"}.get(argument, argument)


@pytest.mark.parametrize("continuations", [(), 5, None, "abc", ((1,), 5), ((1,), "a"), ((1,), ()), ((1,), (TINY_VOCAB,))])
def test_malformed_continuations_are_refused_by_name(continuations: Any, engine: Engine, refuse: Refuse) -> None:
    assert refuse(lambda: engine.score(ScoreRequest((5, 6, 7), continuations))).argument == "continuations"


def test_what_can_never_fit_is_refused_with_the_numbers(engine: Engine, refuse: Refuse) -> None:
    error = refuse(lambda: submit(engine, {"max_new_tokens": 10**6}))
    assert isinstance(error, ContextLengthError)
    assert error.argument == "prompt"


def test_params_of_another_type_and_hints_with_odd_fields_are_refused(engine: Engine, refuse: Refuse) -> None:
    odd: list[tuple[str, Callable[[], object]]] = [
        ("params", lambda: engine.submit("x", {"temperature": 1})),  # type: ignore[arg-type]
        ("params", lambda: engine.submit(GenRequest((5,), params=None))),  # type: ignore[arg-type]
        ("hints.siblings", lambda: engine.submit(GenRequest((5,), hints=Hints(siblings=-1)))),
        ("hints.shared_len", lambda: engine.submit(GenRequest((5,), hints=Hints(shared_len=1.5)))),  # type: ignore[arg-type]
    ]
    for argument, call in odd:
        assert refuse(call).argument == argument


@pytest.mark.parametrize("argument", ["regex", "stop_regex", "json_schema", "grammar", "choices"])
def test_a_refusal_shows_nothing_of_the_constraint(argument: str, engine: Engine, refuse: Refuse) -> None:
    secret = "swordfish"
    texts: dict[str, Any] = {
        "regex": f"({secret}",
        "stop_regex": f"({secret}",
        "json_schema": {"type": "object", "properties": {secret: {"type": secret}}},
        "grammar": f'start: "{secret}" (',
        "choices": (secret * 10_000,),
    }
    error = refuse(lambda: submit(engine, {argument: texts[argument]}))
    assert isinstance(error, GrammarError)
    shown = [str(error), repr(error), str(error.__cause__), str(error.__context__ if not error.__suppress_context__ else "")]
    assert not any(secret in text for text in shown)


def test_a_malformed_request_may_be_followed_by_the_same_one_put_right(engine: Engine, refuse: Refuse) -> None:
    for field, wrong, right in (("temperature", NAN, 0.0), ("top_k", 0, 1), ("n", 0, 1)):
        refuse(functools.partial(submit, engine, {field: wrong}))
        assert submit(engine, {field: right, "max_new_tokens": 2}).result(WAIT_S).usage.completion_tokens >= 1


def test_there_are_enough_cases() -> None:
    cases = [*SAMPLING, *CONSTRAINTS, *UNCOMPILABLE, *TOO_LITTLE_BUDGET, *REQUESTS]
    assert len({f"{argument} {options!r}" for argument, options in cases}) == len(cases) >= 150

"""What compiles means what it says, what does not is refused in our words, and nothing is compiled twice."""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from sgl_core.errors import GrammarError, UnsupportedModelError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.grammar import compiler as compiler_module
from sgl_core.runtime.grammar.compiled import CompiledGrammar, mask_of
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.reasons import reason_of
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing.tiny_models import TINY_VOCAB
from sgl_core.types import SamplingParams

EOS = 2


@pytest.fixture(scope="module")
def vocabulary(tiny_model_folder: Callable[[str], Path]) -> Vocabulary:
    return Vocabulary(LocalCodec.from_folder(tiny_model_folder("llama")).serialised, TINY_VOCAB, [EOS])


@pytest.fixture
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of the constraints that were built, in order."""
    built: list[str] = []

    class Counted(CompiledGrammar):
        def __init__(self, argument: str, *args: Any, **kwargs: Any) -> None:
            built.append(argument)
            time.sleep(0.05)  # others come meanwhile
            super().__init__(argument, *args, **kwargs)

    monkeypatch.setattr(compiler_module, "CompiledGrammar", Counted)
    return built


def compiled_of(compiler: GrammarCompiler, heal: str = "", **params: Any) -> CompiledGrammar:
    compiled = compiler.compile(SamplingParams(**params), heal=heal)
    assert compiled is not None
    return compiled


def accepts(compiled: CompiledGrammar, text: str) -> bool:
    """Whether ``text`` is a whole output, whatever tokens spell it."""
    tokens = compiled.vocabulary.shortest_spelling(text.encode())
    assert tokens is not None
    return compiled.prototype.deep_copy().validate_tokens([*tokens, EOS]) == len(tokens) + 1


def refusal(compiler: GrammarCompiler, **params: Any) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(SamplingParams(**params))
    assert caught.value.argument in params
    return caught.value


def test_nothing_constrains_unless_something_is_given(compiler: GrammarCompiler) -> None:
    assert compiler.compile(SamplingParams()) is None


@pytest.mark.parametrize(
    ("params", "good", "bad"),
    [
        ({"regex": r"\d{3}-a+"}, ["123-a", "000-aaa"], ["12-a", "123-", "\uff11\uff12\uff13-a"]),
        ({"regex": "^a/b$"}, ["a/b"], ["a", "a\\/b"]),
        ({"regex": r"[/\\]\/"}, ["//", "\\/"], ["/", "\\"]),
        ({"regex": 'a\n"b'}, ['a\n"b'], ['a"b']),
        ({"regex": "(?i)yes|no"}, ["YES", "nO"], ["maybe"]),
        ({"json_schema": {"type": "integer"}}, ["0", "-12"], ["1.5", '"1"', " 1"]),
        ({"json_schema": '{"enum": ["ü", null]}'}, ['"ü"', "null"], ['"u"']),
        (
            {
                "json_schema": {
                    "properties": {"b": {}, "a": {}},
                    "required": ["a", "b"],
                    "additionalProperties": False,
                    "type": "object",
                }
            },
            ['{"b":1,"a":[]}'],
            ['{"a":1,"b":2}', '{"b":1, "a":2}', '{"b": 1,"a":2}', '{"b":1}'],
        ),
        ({"grammar": 'start: item ("," item)*\nitem: /[a-c]/ | "%"'}, ["a", "a,%,c"], ["", "a,", "d"]),
        ({"grammar": 'start: "n=" %json {"type": "integer"}'}, ["n=4"], ["n=", "n=x"]),
        ({"choices": ["a", "ab", "abc", "ab"]}, ["a", "ab", "abc"], ["", "b", "abcd", "abab"]),
        (
            {"choices": ['q"\\', "\n\t", "é😀", "<|im_end|>", "\x7f\u2028", "/x/"]},
            ['q"\\', "\n\t", "é😀", "<|im_end|>", "\x7f\u2028", "/x/"],
            ["q", "é"],
        ),
    ],
)
def test_a_constraint_allows_its_texts_and_no_others(
    compiler: GrammarCompiler, params: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    compiled = compiled_of(compiler, **params)
    assert [accepts(compiled, text) for text in good + bad] == [True] * len(good) + [False] * len(bad)
    assert compiled.argument in params


@pytest.mark.parametrize(
    "params", [{"regex": "a+"}, {"json_schema": {"const": "a"}}, {"grammar": 'start: "a" | "b"'}, {"choices": ["a", "ab"]}]
)
def test_a_healed_text_comes_before_any_constraint(compiler: GrammarCompiler, params: dict[str, Any]) -> None:
    text = '"a"' if "json_schema" in params else "a"
    compiled = compiled_of(compiler, 'q" \\', **params)
    assert accepts(compiled, 'q" \\' + text)
    assert not accepts(compiled, text)
    assert not accepts(compiled, 'q" \\')
    assert compiled.healed == b'q" \\'
    assert not compiled.releases
    assert compiled.vocabulary.text_bytes(compiled.shortest).startswith(compiled.healed)


def test_a_healed_text_without_a_constraint_is_followed_by_anything(compiler: GrammarCompiler) -> None:
    compiled = compiled_of(compiler, " é")
    assert compiled.releases
    assert compiled.argument == "heal"
    assert compiled.shortest == ()
    assert [accepts(compiled, text) for text in (" é", " é\n<x>", " e", " ")] == [True, True, False, False]


def test_the_start_certificate_is_the_shortest_output(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    compiled = compiled_of(
        compiler, json_schema={"properties": {"the": {"enum": [12, 345]}}, "required": ["the"], "type": "object"}
    )
    assert vocabulary.text_bytes(compiled.shortest) == b'{"the":12}'
    assert list(compiled.shortest) == vocabulary.shortest_spelling(b'{"the":12}')
    size = len(compiled.shortest)
    assert compiled.fits(size)
    assert not compiled.fits(size - 1)
    error = compiled.refusal(size - 1)
    assert (error.argument, error.shortest_tokens) == ("json_schema", size)
    assert f"needs {size} tokens" in str(error)
    assert "max_new_tokens" in str(error)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"regex": "(?=secret)x"}, "look-around is not supported"),
        ({"regex": "secret^x"}, "look-around is not supported"),
        ({"regex": r"(secret)\1"}, "back-references are not supported"),
        ({"regex": "[secret"}, "a character class is not closed"),
        ({"regex": "(secret"}, "a group is not closed"),
        ({"regex": "secret)"}, "a group is closed that was not opened"),
        ({"regex": "secret{3,2}"}, "a counted repetition ends below its start"),
        ({"regex": "*secret"}, "a repetition has nothing to repeat"),
        ({"regex": r"\p{secret}"}, "a class of Unicode characters is not known"),
        ({"regex": r"[^\x00-\U0010FFFF]"}, "no text satisfies it"),
        ({"regex": "(a?){1000}a{1000}secret"}, "too large|no finite completion"),
        ({"json_schema": {"type": "secret"}}, "a type is not one of JSON's"),
        ({"json_schema": {"$ref": "#/$defs/secret"}}, "a definition that is not there"),
        ({"json_schema": {"not": {"const": "secret"}}}, "it uses not of JSON Schema, which is not supported"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "it uses uniqueItems of JSON Schema, which is not supported"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "no value satisfies it"),
        ({"json_schema": {"enum": []}}, "no value satisfies it"),
        ({"json_schema": {"type": "string", "pattern": "(?=secret)"}}, "look-around is not supported"),
        ({"json_schema": {"oneOf": [{"type": "string"}, {"const": "secret"}]}}, "use anyOf"),
        (
            {
                "json_schema": {
                    "$ref": "#/$defs/n",
                    "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
                }
            },
            "no finite completion found",
        ),
        ({"grammar": 'start: a\na: "a" | secret'}, r"a name that it does not define \(line 2\)"),
        ({"grammar": 'foo: "secret"'}, "no rule named start"),
        ({"grammar": 'start: "secret" ???'}, r"something is not expected \(line 1\)"),
        ({"grammar": "start: @secret"}, "refers to another grammar"),
        ({"grammar": 'start: "secret" start'}, "no finite completion found"),
        ({"grammar": "start: start"}, "no text satisfies it"),
        ({"grammar": '{"grammars": [{"lark_grammar": "start: /secret/"}]}'}, "cannot be compiled|expected"),
        ({"grammar": 'start: "a" <|secret|>'}, "control token"),
    ],
)
def test_a_refusal_says_why_in_words_that_quote_nothing(compiler: GrammarCompiler, params: dict[str, Any], reason: str) -> None:
    error = refusal(compiler, **params)
    assert re.search(reason, str(error))
    assert "secret" not in str(error)
    assert error.__cause__ is None


def test_a_reason_holds_nothing_of_an_unknown_message_but_a_line() -> None:
    assert reason_of("at 12(3): secret 0x7f00") == "it cannot be compiled"
    assert reason_of("at 12(3): secret 0x7f00", by_line=True) == "it cannot be compiled (line 12)"
    assert reason_of('Unimplemented keys: ["secret"]') == "it uses a keyword of JSON Schema, which is not supported"


def test_a_schema_cannot_bring_options_of_the_engine(compiler: GrammarCompiler) -> None:
    options = {"whitespace_flexible": True, "key_separator": "SEP", "lenient": True}
    compiled = compiled_of(
        compiler, json_schema={"properties": {"a": {"const": 1}}, "required": ["a"], "type": "object", "x-guidance": options}
    )
    assert accepts(compiled, '{"a":1}')
    assert not accepts(compiled, '{"a"SEP1}')
    refusal(compiler, json_schema={"x-guidance": options, "not": {}})


def test_the_same_constraint_is_compiled_once(compiler: GrammarCompiler, builds: list[str]) -> None:
    schema = {"type": "integer"}
    first = compiled_of(compiler, json_schema=schema)
    assert compiled_of(compiler, json_schema=dict(schema)) is first
    assert compiled_of(compiler, json_schema=json.dumps(schema, separators=(",", ":"))) is first
    assert builds == ["json_schema"]


def test_constraints_of_different_kind_or_healing_are_kept_apart(compiler: GrammarCompiler, builds: list[str]) -> None:
    texts = [
        compiled_of(compiler, heal, **params).shortest
        for heal in ("", "a", "ab")
        for params in ({"regex": "bc"}, {"regex": "c"})
    ]
    assert len(set(builds)) == 1
    assert len(builds) == len(texts) == 6
    compiled_of(compiler, grammar='start: "x"')
    refusal(compiler, regex='start: "x" (')
    assert accepts(compiled_of(compiler, regex='start: "x"'), 'start: "x"')


def test_refusals_are_kept_and_raised_afresh(compiler: GrammarCompiler, builds: list[str]) -> None:
    errors = [refusal(compiler, regex="(?=a)") for _ in range(3)]
    assert builds == ["regex"]
    assert len(set(map(str, errors))) == 1
    assert len(set(map(id, errors))) == 3


def test_threads_that_want_the_same_constraint_compile_it_once(compiler: GrammarCompiler, builds: list[str]) -> None:
    barrier = threading.Barrier(6)
    results: list[CompiledGrammar] = []

    def submit(number: int) -> None:
        barrier.wait(60)
        results.append(compiled_of(compiler, regex="a{3}" if number % 2 else "b{3}"))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6
    assert len(set(map(id, results))) == 2
    assert builds == ["regex", "regex"]


def test_the_cache_forgets_what_was_used_longest_ago(vocabulary: Vocabulary, builds: list[str]) -> None:
    compiler = GrammarCompiler(vocabulary, max_entries=2)
    for pattern in ("a", "b", "a", "c", "a"):
        compiled_of(compiler, regex=pattern)
    assert len(builds) == 3
    compiled_of(compiler, regex="b")
    assert len(builds) == 4


def test_the_cache_is_bounded_in_bytes(vocabulary: Vocabulary, builds: list[str]) -> None:
    compiler = GrammarCompiler(vocabulary, max_bytes=300_000)
    long = "a" * 3000
    for pattern in (long, "b", long):
        compiled_of(compiler, regex=pattern)
    assert len(builds) == 3


def test_a_failure_that_is_no_refusal_is_not_kept(tiny_model_folder: Callable[[str], Path]) -> None:
    compiler = GrammarCompiler(Vocabulary("{}", 10, [2]))
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            compiler.compile(SamplingParams(regex="a"))


def test_a_grammar_whose_automaton_was_used_up_is_opened_again(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    compiled = compiled_of(compiler, regex="(.{1,1000}b){1,10}")
    used = compiled.prototype.deep_copy()
    tokens = vocabulary.shortest_spelling(b"abcb" * 700)
    assert tokens is not None
    used.consume_tokens(tokens)
    mask_of(used, vocabulary.size)
    assert used.is_error()
    assert accepts(compiled, "acb")


def test_prototypes_are_left_at_their_start(compiler: GrammarCompiler) -> None:
    compiled = compiled_of(compiler, choices=["ab", "cd"])
    assert isinstance(compiled.prototype, LLMatcher)
    compiled.matcher()
    assert accepts(compiled, "ab")
    assert accepts(compiled, "cd")


def test_stop_patterns_are_compiled_once_and_refused_once(compiler: GrammarCompiler) -> None:
    assert compiler.stop_regex(r"\d+;") is compiler.stop_regex(r"\d+;")
    for _ in range(2):
        with pytest.raises(GrammarError, match="stop_regex: look-around"):
            compiler.stop_regex("(?=a)b")

"""From sampling parameters to compiled constraints, each compiled once.

``Intake`` calls it on the caller's thread when a request is submitted, so what cannot be used is refused before it is queued and
no running request waits for a compilation (llguidance lets go of the interpreter meanwhile). The compiler owns the cache of
compiled constraints and of refusals.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from llguidance import regex_to_lark

from sgl_core.errors import GrammarError
from sgl_core.runtime.grammar import caps
from sgl_core.runtime.grammar.closing import shortest_completion
from sgl_core.runtime.grammar.compiled import CompiledGrammar
from sgl_core.runtime.grammar.instance import lark_literals, minimal_choice_texts, minimal_regex_texts, minimal_texts
from sgl_core.runtime.grammar.schema_dialect import understood
from sgl_core.runtime.grammar.stop_regex import StopRegex
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.types import SamplingParams

__all__ = ["GrammarCompiler"]

T = TypeVar("T")

_CONSTRAINT = "constraint"
_ENTRY_BYTES = 64 * 1024
_BYTES_PER_CHAR = 64
"""What a compiled constraint costs, roughly: 1,000 properties in 30 kB of text take 2 MB."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A constraint as text: what it is compiled from and cached by."""

    argument: str
    text: str
    heal: str


class GrammarCompiler:
    """Compiles constraints for one vocabulary. Thread-safe; threads that want the same one compile it once.

    Args:
        vocabulary: of the model.
        max_bytes: of the cache, by a rough estimate. ``max_entries``: compiled or refused.
    """

    def __init__(self, vocabulary: Vocabulary, *, max_bytes: int = 64 * 2**20, max_entries: int = 1024) -> None:
        self._vocabulary = vocabulary
        self._grammars = _Cache[CompiledGrammar](max_bytes, max_entries)
        self._stops = _Cache[StopRegex](max_bytes // 8, max_entries)

    def compile(self, params: SamplingParams, *, heal: str = "") -> CompiledGrammar | None:
        """What the output may be; None if nothing constrains it.

        Args:
            params: its regex, json_schema, grammar or choices.
            heal: what the output repeats first; a constraint applies behind it.

        Raises:
            GrammarError: it is malformed, too large, impossible, or no output of it was found.
            UnsupportedModelError: no constraint can be used with this model's tokenizer.
        """
        source = _source(params, heal)
        if source is None:
            return None
        key = f"{source.argument}\0{len(source.heal)}\0{source.heal}{source.text}"
        return self._grammars.get(key, lambda: self._build(source))

    def stop_regex(self, pattern: str) -> StopRegex:
        """A pattern that ends a generation.

        Raises:
            GrammarError: it is malformed, too large, impossible, or matches the empty text.
        """
        return self._stops.get(pattern, lambda: StopRegex(pattern))

    def _build(self, source: _Source) -> CompiledGrammar:
        grammar, candidates = self._prepare(source)
        compiled = CompiledGrammar(
            source.argument, grammar, self._vocabulary, healed=source.heal.encode(), releases=source.argument == "heal"
        )
        if not compiled.releases:
            shortest = shortest_completion(compiled.prototype, self._vocabulary, candidates)
            if shortest is None:
                raise GrammarError(
                    source.argument,
                    "no finite completion found",
                    "Every output must come to an end: give required recursion a way out.",
                )
            compiled.shortest = shortest
        return compiled

    def _prepare(self, source: _Source) -> tuple[str, Iterable[bytes]]:
        """Check a constraint; returns llguidance's grammar and texts that may be its shortest output."""
        argument, text, heal = source.argument, source.text, source.heal
        caps.check_text("heal", heal)
        entry: dict[str, Any]
        candidates: Iterable[bytes] = ()
        if argument == "heal":
            return _listed({"lark_grammar": f"start: {_quoted(heal)} /(?s:.)*/"}), candidates
        if argument == "json_schema":
            schema = understood(caps.parse_schema(text))
            caps.check_schema(argument, schema)  # names that were listed once may be properties in many places now
            # No white space, and separators of one character: a model may otherwise wander through it for ever, nothing is
            # forced behind a brace, and budgets close two to three times as many outputs by force.
            entry = {"json_schema": {**schema, "x-guidance": {"whitespace_flexible": False}}}
            candidates = minimal_texts(schema, self._vocabulary, heal.encode())
        elif argument == "regex":
            caps.check_regex(argument, text)
            # ASCII digits: the Unicode ones include full-width digits, and no reader of numbers expects them.
            entry = {"lark_grammar": f"start: /{regex_to_lark(text, use_ascii='d')}/"}
            candidates = minimal_regex_texts(text, self._vocabulary, heal.encode())
        elif argument == "grammar":
            caps.check_lark(text)
            entry = {"lark_grammar": text}
            candidates = lark_literals(text)
        else:
            choices = json.loads(text)
            caps.check_choices(choices)
            # One terminal, so that choices that begin alike are one automaton and not many parses.
            entry = {"lark_grammar": f"start: CHOICE\nCHOICE: {' | '.join(map(_quoted, choices))}"}
            candidates = minimal_choice_texts(choices, self._vocabulary, heal.encode())
        if heal:
            return _listed(
                {"lark_grammar": f"start: {_quoted(heal)} @{_CONSTRAINT}"}, {**entry, "name": _CONSTRAINT}
            ), candidates
        return _listed(entry), candidates


def _source(params: SamplingParams, heal: str) -> _Source | None:
    for argument in ("regex", "grammar"):
        text = getattr(params, argument)
        if text is not None:
            return _Source(argument, text, heal)
    if params.json_schema is not None:
        return _Source("json_schema", caps.schema_text(params.json_schema), heal)
    if params.choices is not None:
        return _Source("choices", json.dumps(params.choices), heal)
    return _Source("heal", "", heal) if heal else None


def _listed(*grammars: dict[str, Any]) -> str:
    return json.dumps({"grammars": grammars})


def _quoted(text: str) -> str:
    """A literal of Lark, which knows JSON's escapes."""
    return json.dumps(text)


class _Cache(Generic[T]):
    """What was built or refused, by text; the least recently used goes first. Thread-safe."""

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._lock = Lock()
        self._entries: OrderedDict[str, Future[T | GrammarError]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, build: Callable[[], T]) -> T:
        """The entry of ``key``; one thread builds it, others that ask meanwhile wait.

        Raises:
            GrammarError: ``build`` refused, now or before.
        """
        with self._lock:
            entry = self._entries.get(key)
            is_builder = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
                self._bytes += _size(key)
                self._evict()
            else:
                self._entries.move_to_end(key)
        if is_builder:
            self._build(key, entry, build)
        result = entry.result()
        if isinstance(result, GrammarError):  # a fresh one: raising adds a traceback
            raise GrammarError(result.argument, result.reason, result.cure, shortest_tokens=result.shortest_tokens)
        return result

    def _build(self, key: str, entry: Future[T | GrammarError], build: Callable[[], T]) -> None:
        try:
            entry.set_result(build())
        except GrammarError as refusal:
            refusal.__traceback__ = None
            entry.set_result(refusal)
        except BaseException as error:  # nothing to keep; those who wait must hear of it
            with self._lock:
                if self._entries.get(key) is entry:
                    self._drop(key)
            entry.set_exception(error)

    def _evict(self) -> None:
        while len(self._entries) > 1 and (self._bytes > self._max_bytes or len(self._entries) > self._max_entries):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        del self._entries[key]
        self._bytes -= _size(key)


def _size(key: str) -> int:
    return _ENTRY_BYTES + _BYTES_PER_CHAR * len(key)

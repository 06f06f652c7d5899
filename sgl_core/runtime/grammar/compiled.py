"""A constraint that has been compiled: what all its requests share.

``GrammarCompiler`` makes it and keeps it; ``Intake`` asks whether it fits a budget and takes one matcher per request.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sgl_core.errors import GrammarError
from sgl_core.runtime.grammar.reasons import reason_of
from sgl_core.runtime.grammar.vocabulary import Vocabulary, mask_bytes

if TYPE_CHECKING:
    from sgl_core.runtime.grammar.matcher import GrammarMatcher

__all__ = ["CompiledGrammar", "mask_of", "open_matcher"]

# Measured on hostile constraints: the worst step falls from 0.8 s to 0.1 s, ordinary schemas are untouched. Large lexemes stay
# precomputed: without that the worst mask takes seconds and reports nothing. Verbose errors quote what was generated.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_items_in_row=1000,
    max_lexer_states=20_000,
    max_grammar_size=50_000,
    verbose_errors=False,
)


def mask_of(matcher: LLMatcher, vocab_size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The matcher's allowed tokens, one bit each, lowest first. Ask ``is_error()`` before believing it."""
    mask = np.zeros(mask_bytes(vocab_size), np.uint8)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return mask


def open_matcher(argument: str, tokenizer: LLTokenizer, grammar: str, *, by_line: bool = False) -> LLMatcher:
    """A matcher at the start of a grammar, its first mask computed: impossible grammars show there only.

    Args:
        argument: what the caller calls the constraint.
        tokenizer: llguidance's.
        grammar: JSON text of llguidance's list of grammars.
        by_line: whether the lines of errors are the caller's.

    Raises:
        GrammarError: it cannot be compiled, nothing satisfies it, or it met a limit.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        mask_of(matcher, tokenizer.vocab_size)
    if matcher.is_error():
        raise GrammarError(argument, reason_of(matcher.get_error(), by_line=by_line))
    return matcher


class CompiledGrammar:
    """One constraint for one vocabulary. Thread-safe.

    Args:
        argument: "regex", "json_schema", "grammar" or "choices"; "heal" for a healed literal without a constraint.
        grammar: JSON text of llguidance's list of grammars.
        vocabulary: of the model.
        healed: what the output repeats first, UTF-8.
        releases: whether everything is allowed behind ``healed``.

    Raises:
        GrammarError: see ``open_matcher``.
    """

    def __init__(
        self, argument: str, grammar: str, vocabulary: Vocabulary, *, healed: bytes = b"", releases: bool = False
    ) -> None:
        self.argument = argument
        self.vocabulary = vocabulary
        self.healed = healed
        self.releases = releases
        self.shortest: tuple[int, ...] = ()
        """Tokens of the shortest output known, ``healed`` included; set once, by the compiler. Empty if it ``releases``."""
        self._grammar = grammar
        self._lock = Lock()
        self._prototype = open_matcher(argument, vocabulary.tokenizer, grammar, by_line=argument == "grammar")

    @property
    def prototype(self) -> LLMatcher:
        """A matcher at the start, only to be copied from.

        Copies share one automaton, which grows while they run and is bounded; when one of them meets the bound, all others are
        in error too. So a prototype that has come to this is replaced here.
        """
        with self._lock:
            trial = self._prototype.deep_copy()
            mask_of(trial, self.vocabulary.size)
            if trial.is_error():
                self._prototype = open_matcher(self.argument, self.vocabulary.tokenizer, self._grammar)
            return self._prototype

    def cost(self, tokens: tuple[int, ...], healing: int) -> int:
        """What ``tokens`` take of a budget: those that spell nothing but healed text are the prompt's.

        Args:
            tokens: in order, as they will be appended.
            healing: bytes of the healed text that are still to come.
        """
        num_free = 0
        for token in tokens:
            size = len(self.vocabulary.token_bytes(token))
            if not 0 < size <= healing:
                break
            num_free, healing = num_free + 1, healing - size
        return len(tokens) - num_free

    def fits(self, budget: int) -> bool:
        """Whether an output of at most ``budget`` tokens is known, end of text and what is the prompt's not counted."""
        return self.least <= budget

    @property
    def least(self) -> int:
        """Tokens of the shortest output known, without end of text and what is the prompt's."""
        return self.cost(self.shortest, len(self.healed))

    def refusal(self, budget: int) -> GrammarError:
        """What to raise where it does not fit."""
        return GrammarError(
            self.argument,
            f"the shortest completion found needs {self.least} tokens, and there is room for {budget}",
            "Raise max_new_tokens, or ask for less.",
            shortest_tokens=self.least,
        )

    def matcher(self) -> GrammarMatcher:
        """The constraint of one request."""
        from sgl_core.runtime.grammar.matcher import GrammarMatcher  # it needs this module

        return GrammarMatcher(self)

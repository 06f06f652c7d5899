"""One request's grammar: masks for the sampler, verdicts on its tokens, and an output that always closes within the budget.

Implements ``sgl_core.runtime.constraint.Constraint``. The matcher carries a certificate: tokens that, appended now, complete the
output and fit what is left of the budget. A sampled token is accepted only if a certificate remains afterwards; otherwise the
certificate's own next token is emitted instead. So the output is complete at the end whatever the model wants and however poor
the search for certificates is: the search only decides how early it cuts. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from sgl_core.errors import GrammarError
from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.grammar.closing import closing, completes
from sgl_core.runtime.grammar.compiled import CompiledGrammar, mask_of
from sgl_core.runtime.grammar.json_scan import Scan

__all__ = ["GrammarMatcher"]

_MAX_RUN = 32


@dataclass(slots=True)
class _Position:
    """Where an output stands. A committed one is never written to again.

    Attributes:
        matcher: the automaton.
        certificate: tokens that complete the output from here.
        scan: the output as JSON text.
        healing: bytes of the healed literal that are still to come.
        tokens: the output so far.
    """

    matcher: LLMatcher
    certificate: tuple[int, ...]
    scan: Scan
    healing: int
    tokens: tuple[int, ...] = ()


class GrammarMatcher:
    """The constraint of one request. One owner; may move between threads from call to call.

    Args:
        compiled: the grammar; shared, only copied from. The caller has checked that it ``fits`` the budget.
    """

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._vocabulary = compiled.vocabulary
        self._eos = compiled.vocabulary.eos_ids[0]
        self._ends = frozenset(compiled.vocabulary.eos_ids)
        self._at = _Position(compiled.prototype.deep_copy(), compiled.shortest, Scan(), len(compiled.healed))
        self._mask: NDArray[np.uint8] | None = None

    @property
    def certificate(self) -> tuple[int, ...]:
        """Tokens that would complete the output as it stands; empty also while healing without a grammar."""
        return self._at.certificate

    def mask(self) -> NDArray[np.uint8]:
        """Allowed tokens, see ``Constraint``; computed once for each state of the output."""
        if self._mask is None:
            mask = mask_of(self._at.matcher, self._vocabulary.size)
            if self._at.matcher.is_error():  # others have worn out the automaton that all outputs of this grammar share
                self._at = replace(self._at, matcher=self._reopened())
                mask = mask_of(self._at.matcher, self._vocabulary.size)
                self._check(self._at.matcher)  # in this state it would say that the text may end
            self._mask = mask
        return self._mask

    def _reopened(self) -> LLMatcher:
        """A matcher on a fresh automaton, led to where the output stands."""
        matcher = self._compiled.prototype.deep_copy()
        matcher.consume_tokens(list(self._at.tokens))  # in error again where they do not lead there
        return matcher

    def propose(self, token: int, remaining: int, *, jump: bool = True) -> Verdict:
        """What to do with a sampled token, see ``Constraint``. Every forced token goes through the same steps."""
        self._check(self._at.matcher)
        at = replace(self._at, matcher=self._at.matcher.deep_copy())
        if token in self._ends and completes(at.matcher, (), self._eos):
            return Verdict((token,), ended=True, state=at)
        emitted: list[int] = []
        num_healed = 0
        overruled = not self._push(at, token, remaining)
        if overruled:
            if not at.certificate:
                return Verdict((), ended=True, overruled=True, state=at)
            token = at.certificate[0]
            self._follow(at)
        pending = [token]
        while pending:
            emitted.append(pending.pop(0))
            num_healed += self._heals(at, emitted[-1])
            at.scan = at.scan.after(self._vocabulary.token_bytes(emitted[-1]))
            left = remaining - (len(emitted) - num_healed)
            if self._released(at) or at.matcher.is_stopped() or not (jump and left and len(emitted) < _MAX_RUN):
                break
            pending = pending or at.matcher.compute_ff_tokens()
            if pending and (pending[0] in self._ends or not self._push(at, pending[0], left)):
                break
        at.tokens = (*at.tokens, *emitted)
        return Verdict(
            tuple(emitted),
            ended=at.matcher.is_stopped() and not self._released(at),
            overruled=overruled,
            num_healed=num_healed,
            released=self._released(at),
            state=at,
        )

    def commit(self, verdict: Verdict) -> None:
        """Go where the last ``propose`` led, see ``Constraint``."""
        assert isinstance(verdict.state, _Position), "a verdict of another constraint"
        self._at = verdict.state
        self._mask = None

    def _push(self, at: _Position, token: int, remaining: int) -> bool:
        """Append ``token`` if the output can still be completed behind it, within ``remaining`` tokens, this one included."""
        if at.certificate[:1] == (token,):
            self._follow(at)
            return True
        after = at.matcher.deep_copy()
        if not after.consume_token(token):
            if self._compiled.releases:
                raise self._failure()
            return False
        certificate: tuple[int, ...] | None = at.certificate
        spelled = self._vocabulary.token_bytes(token)
        healing = max(0, at.healing - len(spelled))
        room = remaining - self._compiled.cost((token,), at.healing)
        if not self._compiled.releases and (
            self._compiled.cost(at.certificate, healing) > room or not completes(after, at.certificate, self._eos)
        ):
            certificate = closing(after, self._vocabulary, at.scan.after(spelled), room + healing, at.certificate)
        if certificate is None or self._compiled.cost(certificate, healing) > room:
            return False
        at.matcher, at.certificate = after, certificate
        return True

    def _follow(self, at: _Position) -> None:
        """Append the certificate's first token."""
        at.matcher.consume_token(at.certificate[0])
        self._check(at.matcher)
        at.certificate = at.certificate[1:]

    def _heals(self, at: _Position, token: int) -> bool:
        """Count a token's bytes off the healed literal; whether it spells nothing else."""
        size = len(self._vocabulary.token_bytes(token))
        inside = 0 < size <= at.healing
        at.healing = max(0, at.healing - size)
        return inside

    def _released(self, at: _Position) -> bool:
        return self._compiled.releases and at.healing == 0

    def _check(self, matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise self._failure()

    def _failure(self) -> GrammarError:
        return GrammarError(
            self._compiled.argument,
            "the grammar allows no token here, or is too complex to follow",
            "Simplify it: fewer alternatives, smaller repetitions, less nesting.",
        )

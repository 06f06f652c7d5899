"""A model that cannot be fooled: its next token depends on every earlier token *as found in the KV content*.

``OracleRunner`` stands where ``ModelRunner`` stands. Beside each slot it keeps a digest of everything up to that token,
its namespace included; a wrong slot, position, prefix, neighbour or row changes the text, and is named on the spot.
``oracle_continuation`` says what the text must be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.plan import Sample, StepPlan, StepResult, Work
from sgl_core.runtime.request import Request
from sgl_core.types import TokenLogprob

__all__ = ["Forcing", "OracleRunner", "oracle_continuation", "oracle_score"]

_GARBAGE = b"garbage"


def _start(namespace: str | None) -> bytes:
    return b"start" if namespace is None else b"start of " + namespace.encode()


def _extend(digest: bytes, token: int) -> bytes:
    return hashlib.blake2b(digest + token.to_bytes(4, "big"), digest_size=8).digest()


def _next_token(digest: bytes, vocab: int) -> int:
    return int.from_bytes(digest, "big") % vocab


def oracle_continuation(prompt: Sequence[int], count: int, vocab: int, *, namespace: str | None = None) -> list[int]:
    """The ``count`` tokens that the oracle generates behind ``prompt`` in ``namespace``."""
    digest = _start(namespace)
    for token in prompt:
        digest = _extend(digest, token)
    out = []
    for _ in range(count):
        out.append(_next_token(digest, vocab))
        digest = _extend(digest, out[-1])
    return out


def oracle_score(before: Sequence[int], token: int, *, namespace: str | None = None) -> TokenLogprob:
    """What the oracle thinks of ``token`` behind ``before``."""
    digest = _start(namespace)
    for earlier in before:
        digest = _extend(digest, earlier)
    return _score(digest, token)


def _score(digest: bytes, token: int) -> TokenLogprob:
    return TokenLogprob(token, -float(int.from_bytes(_extend(digest, token), "big") % 10_000))


class Forcing:
    """A constraint that forces what the oracle would have said anyway, so that the text stays what it was.

    Args:
        ids: of its request; read only. ``run``: tokens that each sampled one brings with it.
    """

    def __init__(self, ids: list[int], run: int, vocab: int, *, namespace: str | None = None) -> None:
        self._ids, self._run, self._vocab, self._namespace = ids, run, vocab, namespace

    def mask(self) -> NDArray[np.uint8]:
        """Everything."""
        return np.full(4 * -(-self._vocab // 32), 255, dtype=np.uint8)

    def propose(self, token: int, remaining: int, *, jump: bool = True) -> Verdict:
        """The token and some more, within what remains."""
        known, run = [*self._ids, token], min(self._run, remaining - 1) if jump else 0
        forced = oracle_continuation(known, run, self._vocab, namespace=self._namespace)
        return Verdict((token, *forced), state=len(known))

    def commit(self, verdict: Verdict) -> None:
        """The latest verdict alone may be committed."""
        assert verdict.state == len(self._ids) + 1, "a verdict was committed twice, late or never"


class OracleRunner:
    """Runs plans without a model, and keeps what a runner keeps: the slot table and the KV content.

    Args:
        num_slots: size of the pool.
        vocab: tokens are drawn from ``range(vocab)``.

    Attributes:
        digests: by slot, what its KV was computed from; None before the first write.
        computed_tokens: tokens run so far, in steps that did not raise.
    """

    def __init__(self, num_slots: int, vocab: int) -> None:
        self.digests: list[bytes | None] = [None] * num_slots
        self.computed_tokens = 0
        self._vocab = vocab
        self._table: dict[int, list[int]] = {}  # row -> slots, brought up to date as ``Work.table_start`` says
        self._contents: dict[str, tuple[list[int], list[bytes]]] = {}  # by request: ids, and the digest up to each

    def run(self, plan: StepPlan) -> StepResult:
        """One step: store all new tokens, then attend, as a forward pass does.

        Raises:
            AssertionError: the plan contradicts itself or the state of a request; a token attends to a slot that holds
                something else; the slot table would be stale.
        """
        assert plan.works, "a plan runs nothing"
        self._check_plan(plan)
        written: set[int] = set()
        for work in plan.works:
            contents = self._content(work.request)
            for position in range(work.start, work.end):
                slot = work.request.slots[position]
                assert slot not in written, "two tokens are written to one slot"
                written.add(slot)
                self.digests[slot] = contents[position]
        for work in plan.works:  # all slots that its tokens read, those of a trie's other branches included
            read = [self.digests[slot] for slot in work.request.slots[: work.end]]
            assert read == self._content(work.request)[: work.end], "a slot holds another prefix"
        self.computed_tokens += plan.num_tokens
        return StepResult(
            tuple(self._sampled(work) for work in plan.works),
            tuple(self._scored(work) for work in plan.works),
            (None,) * len(plan.works),
        )

    def spoil(self, plan: StepPlan) -> None:
        """Leave what a forward pass that raised may leave: garbage in all slots that it was to write."""
        self._check_plan(plan)
        for work in plan.works:
            for slot in work.request.slots[work.start : work.end]:
                self.digests[slot] = _GARBAGE

    # ---- checking ----------------------------------------------------------------------------------------------------
    def _check_plan(self, plan: StepPlan) -> None:
        for work in plan.works:
            request = work.request
            assert work.start == request.computed_len, "work does not start where the request stands"
            assert work.start < work.end <= len(request.ids), "work runs nothing, or tokens that are not there"
            assert len(request.slots) >= work.end, "a token has no slot"
            self._update_table(work)
        rows = [work.request.row for work in plan.works]
        assert len(rows) == len(set(rows)), "two works have one row"
        self._check_shared(plan)

    def _update_table(self, work: Work) -> None:
        row, slots = self._table.setdefault(work.request.row, []), work.request.slots[: work.end]
        row[work.table_start : work.end] = slots[work.table_start :]
        assert row[: work.end] == slots, "the slot table is stale"

    def _check_shared(self, plan: StepPlan) -> None:
        covered = [0] * len(plan.works)
        for prefix in plan.shared:
            members = [plan.works[member] for member in prefix.members]
            assert len(members) > 1, "a prefix is shared by one"
            assert all(work.start >= prefix.end for work in members), "a shared prefix covers tokens of this step"
            tables = {tuple(work.request.slots[prefix.start : prefix.end]) for work in members}
            assert len(tables) == 1, "members of a shared prefix have different slots"
            for member in prefix.members:
                assert covered[member] == prefix.start, "a member's shared prefixes leave a gap"
                covered[member] = prefix.end
        assert covered == [work.shared_len for work in plan.works], "shared_len is not what the shared prefixes cover"

    # ---- content -----------------------------------------------------------------------------------------------------
    def _content(self, request: Request) -> list[bytes]:
        """The digest up to each of a request's tokens, from its ids alone."""
        ids, digests = self._contents.setdefault(request.id, ([], []))
        assert request.ids[: len(ids)] == ids, "a request's ids changed"
        for index, token in enumerate(request.ids[len(ids) :], len(ids)):
            before = index - 1
            if request.branches is not None and index >= request.prompt_len:
                before = request.prompt_len + request.branches.parents[index - request.prompt_len]
                before = request.prompt_len - 1 if before < request.prompt_len else before
            ids.append(token)
            digests.append(_extend(digests[before] if index else _start(request.namespace), token))
        return digests

    def _sampled(self, work: Work) -> tuple[Sample, ...]:
        if not work.sample:
            return ()
        token = _next_token(self._content(work.request)[work.end - 1], self._vocab)
        return tuple(self._judged(request, token) for request in (work.request, *work.request.followers))

    def _judged(self, request: Request, token: int) -> Sample:
        verdict = None
        if request.constraint is not None:
            remaining = request.max_new_tokens - request.num_generated
            verdict = request.constraint.propose(token, remaining, jump=request.params.logprobs is None)
        logprob = None
        if request.params.logprobs is not None:
            logprob = oracle_score(request.ids, token, namespace=request.namespace)
        return Sample(token, verdict, logprob)

    def _scored(self, work: Work) -> tuple[TokenLogprob, ...]:
        contents, positions = self._content(work.request), range(work.logit_start, work.end)
        return tuple(_score(contents[p], token) for p in positions for token in work.request.targets(p))

"""A model that cannot be fooled: its next token depends on every earlier token *as found in the KV content*.

``OracleRunner`` stands where ``ModelRunner`` stands. Beside each slot it keeps a digest of everything up to that token,
its namespace included; a wrong slot, position, prefix, neighbour or row changes the text, and is named on the spot.
``oracle_continuation`` says what the text must be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sgl_core.runtime.plan import StepPlan, StepResult, Work
from sgl_core.runtime.request import Kind, Request

__all__ = ["OracleRunner", "oracle_continuation"]

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
        for work in plan.works:
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
            assert work.start < work.end <= request.target_len, "work runs nothing, or tokens that are not there"
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
        for token in request.ids[len(ids) :]:
            ids.append(token)
            digests.append(_extend(digests[-1] if digests else _start(request.namespace), token))
        return digests

    def _sampled(self, work: Work) -> int | None:
        return _next_token(self._content(work.request)[work.end - 1], self._vocab) if work.sample else None

    def _scored(self, work: Work) -> tuple[float, ...]:
        """Log-probabilities whose values tell which token was scored: minus its id."""
        request = work.request
        first = max(work.start, request.score_from - 1)
        return tuple(-float(request.ids[p + 1]) for p in range(first, work.end)) if request.kind is Kind.SCORE else ()

"""From a plan to tensors: the slot table and the layout of one packed batch. The runner owns both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sgl_core.runtime.plan import StepPlan, Work
from sgl_kernels import DecodeBucket, ExtendRow, SharedRun, StepLayout

__all__ = ["Batch", "SlotTable", "build_batch"]


class SlotTable:
    """The slots of every running request's tokens, one row each, on the device.

    Args:
        num_rows: requests at most.
        num_columns: tokens of one request at most.
    """

    def __init__(self, num_rows: int, num_columns: int, device: torch.device) -> None:
        self.slots = torch.zeros(num_rows, num_columns, dtype=torch.int64, device=device)

    def update(self, works: Iterable[Work]) -> None:
        """Write what the plan gave to its requests since their last steps, all at once."""
        cells: list[int] = []
        fresh: list[int] = []
        for work in works:
            first = work.request.row * self.slots.shape[1]
            cells.extend(range(first + work.table_start, first + work.end))
            fresh.extend(work.request.slots[work.table_start : work.end])
        where, what = (torch.tensor(values, dtype=torch.int64, device=self.slots.device) for values in (cells, fresh))
        self.slots.view(-1).index_copy_(0, where, what)

    def span(self, row: int, start: int, end: int) -> torch.Tensor | slice:
        """Slots of tokens ``start:end``, as a slice where they are consecutive."""
        slots = self.slots[row, start:end]
        first, last = int(slots[0]), int(slots[-1])
        if last - first == end - start - 1 and bool((slots.diff() == 1).all()):
            return slice(first, last + 1)
        return slots


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one step, ``T`` tokens packed.

    Args:
        input_ids: ``[1, T]`` int64. ``position_ids`` likewise.
        layout: where everything lies.
        q_lens: new tokens of each work. ``kv_slots``: per work, all its slots up to the last new token.
        logit_rows: ``[n]`` int64, packed rows whose logits are needed, in the order of the works.
        logit_counts: how many of them belong to each work.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: StepLayout
    q_lens: tuple[int, ...]
    kv_slots: tuple[torch.Tensor, ...]
    logit_rows: torch.Tensor
    logit_counts: tuple[int, ...]


def build_batch(plan: StepPlan, table: SlotTable, *, dtype: torch.dtype) -> Batch:
    """Lay out a plan; brings the table up to date.

    Args:
        dtype: of the model, for the padding bias.
    """
    device = table.slots.device
    ids: list[int] = []
    positions: list[int] = []
    out_loc: list[int] = []
    starts: list[int] = []
    logit_rows: list[int] = []
    logit_counts: list[int] = []
    table.update(plan.works)
    for work in plan.works:
        starts.append(len(ids))
        rows = _logit_positions(work)
        logit_rows.extend(len(ids) + position - work.start for position in rows)
        logit_counts.append(len(rows))
        ids.extend(work.request.ids[work.start : work.end])
        positions.extend(range(work.start, work.end))
        out_loc.extend(work.request.slots[work.start : work.end])

    def indices(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    layout = StepLayout(
        indices(out_loc),
        _shared_runs(plan, starts, table),
        _decode_buckets(plan.works, starts, table, dtype),
        _extend_rows(plan.works, starts, table),
    )
    return Batch(
        input_ids=indices(ids).unsqueeze(0),
        position_ids=indices(positions).unsqueeze(0),
        layout=layout,
        q_lens=tuple(w.end - w.start for w in plan.works),
        kv_slots=tuple(table.slots[w.request.row, : w.end] for w in plan.works),
        logit_rows=indices(logit_rows),
        logit_counts=tuple(logit_counts),
    )


def _logit_positions(work: Work) -> range:
    """Positions whose logits are needed: the last for sampling, those before scored tokens for scoring."""
    request = work.request
    if work.sample:
        return range(work.end - 1, work.end)
    if request.score_from:
        return range(max(work.start, request.score_from - 1), work.end)
    return range(0)


def _shared_runs(plan: StepPlan, starts: list[int], table: SlotTable) -> tuple[SharedRun, ...]:
    runs = []
    for prefix in plan.shared:
        rows = [
            row
            for member in prefix.members
            for row in range(starts[member], starts[member] + plan.works[member].end - plan.works[member].start)
        ]
        slots = table.span(plan.works[prefix.members[0]].request.row, prefix.start, prefix.end)
        runs.append(SharedRun(_rows(rows, table.slots.device), slots))
    return tuple(runs)


def _decode_buckets(
    works: tuple[Work, ...], starts: list[int], table: SlotTable, dtype: torch.dtype
) -> tuple[DecodeBucket, ...]:
    """Works of one token, bucketed by powers of two of their own length, so that padding at most doubles the reads."""
    device = table.slots.device
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, work in enumerate(works):
        if work.end - work.start == 1:
            by_length[(work.end - work.shared_len - 1).bit_length()].append(index)
    buckets = []
    for members in by_length.values():
        rows = _rows([starts[m] for m in members], device)
        if len(members) == 1:
            work = works[members[0]]
            slots = table.span(work.request.row, work.shared_len, work.end)
            buckets.append(DecodeBucket(rows, slots if isinstance(slots, slice) else slots.unsqueeze(0), None))
            continue
        table_rows = torch.tensor([works[m].request.row for m in members], dtype=torch.int64, device=device)
        firsts = torch.tensor([works[m].shared_len for m in members], dtype=torch.int64, device=device)
        lengths = torch.tensor([works[m].end - works[m].shared_len for m in members], dtype=torch.int64, device=device)
        offsets = torch.arange(int(lengths.max()), device=device)
        padded = offsets >= lengths.unsqueeze(1)
        columns = firsts.unsqueeze(1) + offsets.minimum(lengths.unsqueeze(1) - 1)
        slots = table.slots[table_rows.unsqueeze(1), columns]
        bias = torch.zeros(padded.shape, dtype=dtype, device=device).masked_fill(padded, float("-inf"))[:, None, None, :]
        buckets.append(DecodeBucket(rows, slots, bias if bool(padded.any()) else None))
    return tuple(buckets)


def _rows(rows: list[int], device: torch.device) -> torch.Tensor | slice:
    """Packed rows, as a slice where they are consecutive: it is read and written without index arithmetic."""
    first, behind = rows[0], rows[0] + len(rows)
    if rows[-1] == behind - 1 and rows == list(range(first, behind)):
        return slice(first, behind)
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _extend_rows(works: tuple[Work, ...], starts: list[int], table: SlotTable) -> tuple[ExtendRow, ...]:
    rows = []
    for work, start in zip(works, starts, strict=True):
        count = work.end - work.start
        if count > 1:
            own = table.span(work.request.row, work.shared_len, work.start) if work.start > work.shared_len else None
            rows.append(ExtendRow(start, start + count, own))
    return tuple(rows)

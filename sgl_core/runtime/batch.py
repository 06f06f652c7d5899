"""From a plan to tensors: the slot table and the layout of one packed batch. The runner owns both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from sgl_core.runtime.plan import StepPlan, Work
from sgl_kernels import DecodeBucket, ExtendRow, SharedRun, StepLayout

__all__ = ["Batch", "SlotTable", "build_batch", "positions_of", "query_runs"]


class SlotTable:
    """The slots of every running request's tokens, one row each, on the device.

    Args:
        num_rows: requests at most.
        num_columns: tokens of one request at most.
    """

    def __init__(self, num_rows: int, num_columns: int, device: torch.device) -> None:
        self.slots = torch.zeros(num_rows, num_columns, dtype=torch.int64, device=device)

    def update(self, works: Iterable[Work]) -> None:
        """Write what the plan gave to its requests since their last steps, all at once. Nodes of a trie have no column."""
        cells: list[int] = []
        fresh: list[int] = []
        for work in works:
            first, end = work.request.row * self.slots.shape[1], _row_end(work)
            cells.extend(range(first + work.table_start, first + end))
            fresh.extend(work.request.slots[work.table_start : end])
        where, what = (torch.tensor(values, dtype=torch.int64, device=self.slots.device) for values in (cells, fresh))
        self.slots.view(-1).index_copy_(0, where, what)

    def span(self, row: int, start: int, end: int) -> torch.Tensor | slice:
        """Slots of tokens ``start:end``, as a slice where they are consecutive."""
        slots = self.slots[row, start:end]
        first, last = int(slots[0]), int(slots[-1])
        if last - first == end - start - 1 and bool((slots.diff() == 1).all()):
            return slice(first, last + 1)
        return slots


class Sequences:
    """A step's queries, sequence by sequence, for attention that goes through them one by one; made when asked for."""

    def __init__(self, works: tuple[Work, ...], table: SlotTable) -> None:
        self._works = works
        self._table = table

    @cached_property
    def longest(self) -> int:
        """Keys that any query sees at most."""
        return max(position + 1 for work in self._works for position in positions_of(work))

    @cached_property
    def runs(self) -> tuple[tuple[int, torch.Tensor], ...]:
        """See ``query_runs``, of all works in order."""
        return tuple(run for work in self._works for run in query_runs(work, self._table))


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one step, ``T`` tokens packed.

    Args:
        input_ids: ``[1, T]`` int64. ``position_ids`` likewise.
        layout: where everything lies.
        sequences: the same queries one sequence after another.
        logit_rows: ``[n]`` int64, packed rows whose logits are needed, in the order of the works.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: StepLayout
    sequences: Sequences
    logit_rows: torch.Tensor


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
    table.update(plan.works)
    for work in plan.works:
        starts.append(len(ids))
        logit_rows.extend(range(len(ids) + work.logit_start - work.start, len(ids) + work.end - work.start))
        ids.extend(work.request.ids[work.start : work.end])
        positions.extend(positions_of(work))
        out_loc.extend(work.request.slots[work.start : work.end])

    def indices(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    layout = StepLayout(
        indices(out_loc),
        _shared_runs(plan, starts, table) + _prompt_runs(plan.works, starts, table),
        _decode_buckets(plan.works, starts, table, dtype) + _node_buckets(plan.works, starts, device, dtype),
        _extend_rows(plan.works, starts, table),
    )
    return Batch(
        input_ids=indices(ids).unsqueeze(0),
        position_ids=indices(positions).unsqueeze(0),
        layout=layout,
        sequences=Sequences(plan.works, table),
        logit_rows=indices(logit_rows),
    )


def _row_end(work: Work) -> int:
    """Behind the last token of a work that stands in one row; nodes of a trie follow."""
    return work.end if work.request.branches is None else max(work.start, min(work.end, work.request.prompt_len))


def _nodes(work: Work) -> range:
    """Nodes of a trie that a work runs."""
    prompt_len = work.request.prompt_len
    return range(_row_end(work) - prompt_len, work.end - prompt_len) if _row_end(work) < work.end else range(0)


def positions_of(work: Work) -> list[int]:
    """Positions of the tokens that a work runs: a trie's siblings have the same."""
    branches = work.request.branches
    row = list(range(work.start, _row_end(work)))
    return row if branches is None else row + [work.request.prompt_len + branches.depths[node] for node in _nodes(work)]


def _path_slots(work: Work, node: int) -> list[int]:
    """Slots from the first node behind the prompt down to one."""
    request = work.request
    assert request.branches is not None, "only a trie has nodes"
    return [request.slots[request.prompt_len + ancestor] for ancestor in request.branches.path(node)]


def query_runs(work: Work, table: SlotTable) -> list[tuple[int, torch.Tensor]]:
    """Queries that stand one behind another, and all slots that the last of them sees; a node stands alone."""
    request, end = work.request, _row_end(work)
    runs = [(end - work.start, table.slots[request.row, :end])] if end > work.start else []
    prompt = table.slots[request.row, : request.prompt_len]
    for node in _nodes(work):
        runs.append((1, torch.cat([prompt, prompt.new_tensor(_path_slots(work, node))])))
    return runs


def _prompt_runs(works: tuple[Work, ...], starts: list[int], table: SlotTable) -> tuple[SharedRun, ...]:
    """What all nodes of a trie read behind the batch's shared runs: the rest of their prompt."""
    runs = []
    for work, start in zip(works, starts, strict=True):
        nodes, prompt_len = _nodes(work), work.request.prompt_len
        if nodes and work.shared_len < prompt_len:
            first = start + _row_end(work) - work.start
            rows = slice(first, first + len(nodes))
            runs.append(SharedRun(rows, table.span(work.request.row, work.shared_len, prompt_len)))
    return tuple(runs)


def _node_buckets(
    works: tuple[Work, ...], starts: list[int], device: torch.device, dtype: torch.dtype
) -> tuple[DecodeBucket, ...]:
    """Nodes of tries and their ancestors, bucketed by powers of two of their depth."""
    by_depth: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for work, start in zip(works, starts, strict=True):
        first = start + _row_end(work) - work.start
        for row, node in enumerate(_nodes(work), first):
            path = _path_slots(work, node)
            by_depth[(len(path) - 1).bit_length()].append((row, path))
    buckets = []
    for members in by_depth.values():
        longest = max(len(path) for _, path in members)
        slots = torch.tensor([path + path[-1:] * (longest - len(path)) for _, path in members], device=device)
        lengths = torch.tensor([len(path) for _, path in members], device=device)
        buckets.append(DecodeBucket(_rows([row for row, _ in members], device), slots, _padding_bias(lengths, longest, dtype)))
    return tuple(buckets)


def _padding_bias(lengths: torch.Tensor, longest: int, dtype: torch.dtype) -> torch.Tensor | None:
    """``[b, 1, 1, longest]``: -inf behind each length; None where nothing is padded."""
    padded = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
    if not bool(padded.any()):
        return None
    bias = torch.zeros(padded.shape, dtype=dtype, device=lengths.device).masked_fill(padded, float("-inf"))
    return bias[:, None, None, :]


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
        if _row_end(work) - work.start == 1:
            by_length[(_row_end(work) - work.shared_len - 1).bit_length()].append(index)
    buckets = []
    for members in by_length.values():
        rows = _rows([starts[m] for m in members], device)
        if len(members) == 1:
            work = works[members[0]]
            slots = table.span(work.request.row, work.shared_len, _row_end(work))
            buckets.append(DecodeBucket(rows, slots if isinstance(slots, slice) else slots.unsqueeze(0), None))
            continue
        table_rows = torch.tensor([works[m].request.row for m in members], dtype=torch.int64, device=device)
        firsts = torch.tensor([works[m].shared_len for m in members], dtype=torch.int64, device=device)
        lengths = torch.tensor([_row_end(works[m]) - works[m].shared_len for m in members], dtype=torch.int64, device=device)
        longest = int(lengths.max())
        columns = firsts.unsqueeze(1) + torch.arange(longest, device=device).minimum(lengths.unsqueeze(1) - 1)
        slots = table.slots[table_rows.unsqueeze(1), columns]
        buckets.append(DecodeBucket(rows, slots, _padding_bias(lengths, longest, dtype)))
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
        count = _row_end(work) - work.start
        if count > 1:
            own = table.span(work.request.row, work.shared_len, work.start) if work.start > work.shared_len else None
            rows.append(ExtendRow(start, start + count, own))
    return tuple(rows)

from __future__ import annotations

import torch

from sgl_core.runtime.batch import Batch, SlotTable, build_batch
from sgl_core.runtime.plan import SharedPrefix, StepPlan, Work
from sgl_core.runtime.request import Kind, Request
from sgl_core.types import SamplingParams

CPU = torch.device("cpu")


def request(row: int, slots: list[int]) -> Request:
    made = Request(
        id=f"r{row}",
        ids=[100 * row + position for position in range(len(slots))],
        kind=Kind.GENERATE,
        params=SamplingParams(),
        max_new_tokens=8,
        stop_ids=frozenset(),
        sink=None,
        submitted_at=0.0,
    )
    made.row, made.slots = row, slots
    return made


def work(owner: Request, start: int, *, table_start: int = 0, shared_len: int = 0) -> Work:
    end = len(owner.ids)
    return Work(owner, start, end, table_start, shared_len, logit_start=end - 1, sample=True)


def build(*works: Work, shared: tuple[SharedPrefix, ...] = (), table: SlotTable | None = None) -> Batch:
    return build_batch(StepPlan(works, shared), table or SlotTable(4, 16, CPU), dtype=torch.float32)


def test_the_table_holds_what_every_step_gave_to_every_request() -> None:
    table = SlotTable(4, 16, CPU)
    first, second = request(2, [9, 8, 7]), request(0, [1, 2])
    build(work(first, 0), work(second, 0), table=table)
    first.ids.append(5)
    first.slots = [*first.slots, 3]
    batch = build(work(second, 1, table_start=2), work(first, 3, table_start=3), table=table)
    assert [slots.tolist() for _, slots in batch.sequences.runs] == [[1, 2], [9, 8, 7, 3]]
    assert table.slots.sum() == 1 + 2 + 9 + 8 + 7 + 3  # no other cell was written


def test_ids_positions_and_places_follow_the_works() -> None:
    batch = build(work(request(1, [4, 5, 6]), 1), work(request(3, [7, 2]), 1))
    assert batch.input_ids.tolist() == [[101, 102, 301]]
    assert batch.position_ids.tolist() == [[1, 2, 1]]
    assert batch.layout.out_loc.tolist() == [5, 6, 2]
    assert batch.logit_rows.tolist() == [1, 2]


def test_consecutive_rows_become_a_slice_and_others_indices() -> None:
    slots = [[0, 1, 10 + row] for row in range(3)]
    decodes = [work(request(row, slots[row]), 2, shared_len=2) for row in range(3)]
    every, some = SharedPrefix(0, 2, (0, 1, 2)), SharedPrefix(0, 2, (0, 2))
    assert build(*decodes, shared=(every,)).layout.shared[0].rows == slice(0, 3)
    rows = build(*decodes, shared=(some,)).layout.shared[0].rows
    assert isinstance(rows, torch.Tensor)
    assert rows.tolist() == [0, 2]


def test_members_in_another_order_are_not_taken_for_a_slice() -> None:
    decodes = [work(request(row, [0, 1, 10 + row]), 2, shared_len=2) for row in range(4)]
    rows = build(*decodes, shared=(SharedPrefix(0, 2, (0, 2, 1, 3)),)).layout.shared[0].rows
    assert isinstance(rows, torch.Tensor)
    assert rows.tolist() == [0, 2, 1, 3]


def test_decodes_of_unequal_length_are_padded_with_a_slot_of_their_own() -> None:
    long, short = request(0, [3, 9, 5, 1, 12, 7]), request(1, [2, 8, 6, 4, 11])
    (bucket,) = build(work(long, 5), work(short, 4)).layout.decodes
    assert isinstance(bucket.slots, torch.Tensor)
    assert bucket.slots.tolist() == [[3, 9, 5, 1, 12, 7], [2, 8, 6, 4, 11, 11]]
    assert bucket.bias is not None
    assert bucket.bias[:, 0, 0].isinf().tolist() == [[False] * 6, [False] * 5 + [True]]

"""The deterministic forward: the same logits and the same keys and values, bit for bit, in every history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from sgl_core.runtime import tiling
from sgl_core.runtime.attention import ShapeRecorder, StepContext, install_attention, run_packed
from sgl_core.runtime.batch import SlotTable, build_batch
from sgl_core.runtime.choice_trie import build_tries
from sgl_core.runtime.kv_pool import KVPool
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.packing import pack_linears
from sgl_core.runtime.plan import StepPlan, Work
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.tiling import TiledForward, agreeing_tile_sizes, build_tile, split_into_tiles
from sgl_core.testing.tiny_models import TINY_CONTEXT, load_tiny_model
from sgl_core.types import SamplingParams
from sgl_kernels import GatherScratch

CPU = torch.device("cpu")
LENGTH = 75  # beyond the tiny models' windows of 32
PREFIX = 41
SIZES = (1, 4, 16, 32)
Run = Callable[[StepPlan], torch.Tensor]


def request(ids: Sequence[int], slots: Sequence[int], row: int = 0, **fields: Any) -> Request:
    made = Request(
        id=f"r{row}",
        ids=list(ids),
        kind=Kind.PREFETCH,
        params=SamplingParams(),
        max_new_tokens=0,
        stop_ids=frozenset(),
        sink=None,
        submitted_at=0.0,
        **fields,
    )
    made.row, made.slots = row, list(slots)
    return made


def work(owner: Request, start: int, end: int, *, logit_start: int | None = None, sample: bool = False) -> Work:
    return Work(owner, start, end, 0, 0, start if logit_start is None else logit_start, sample)


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Subject:
    """A model, and what its forward gives in each history: logits of all positions, and all keys and values."""

    def __init__(self, model: Any, length: int = LENGTH, *, sizes: tuple[int, ...] | None = None) -> None:
        install_attention(model)
        self.model, self.length = model, length
        recorder = ShapeRecorder()
        run_packed(model, torch.zeros(1, 2, dtype=torch.int64), torch.arange(2)[None], recorder, torch.tensor([1]))
        self._shapes = [recorder.shapes[layer] for layer in range(recorder.calls)]
        self.sizes = sizes or agreeing_tile_sizes(model, TINY_CONTEXT)
        self.ids = ids_of(length, seed=0)

    def fresh(self) -> None:
        """An empty pool of NaN, and slots in another order than positions."""
        self.pool = KVPool(self._shapes, 20 * self.length, dtype=self.model.dtype, device=CPU)
        for tensor in (*self.pool.keys, *self.pool.values):
            tensor.fill_(float("nan"))
        self.table = SlotTable(20, self.length + 40, CPU)
        self._free = torch.randperm(self.pool.num_slots, generator=torch.Generator().manual_seed(2)).tolist()

    def take(self, count: int) -> list[int]:
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def tiled(self, plan: StepPlan) -> torch.Tensor:
        forward = TiledForward(self.model, self.pool, self.table, GatherScratch(), sizes=self.sizes)
        return forward.logits(plan)

    def fast(self, plan: StepPlan) -> torch.Tensor:
        batch = build_batch(plan, self.table, dtype=self.model.dtype)
        step = StepContext(self.pool, batch, GatherScratch())
        return run_packed(self.model, batch.input_ids, batch.position_ids, step, batch.logit_rows)

    def kv(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.cat([t[list(slots)].flatten(1) for pair in (self.pool.keys, self.pool.values) for t in pair], dim=1)

    def in_chunks(self, run: Run, cuts: Sequence[int]) -> list[torch.Tensor]:
        self.fresh()
        owner = request(self.ids, self.take(self.length))
        logits = torch.cat([run(StepPlan((work(owner, a, b),), ())) for a, b in pairwise(cuts)])
        return [logits, self.kv(owner.slots)]

    def among_others(self, run: Run) -> list[torch.Tensor]:
        """Decoding from half-way on, in chunks, while 15 others prefill and decode around it."""
        self.fresh()
        owner = request(self.ids, self.take(self.length), 7)
        others = [request(ids_of(self.length, row + 1), self.take(self.length), row) for row in range(16) if row != 7]
        logits = []
        for step, (start, end) in enumerate(pairwise([0, 3, PREFIX, *range(PREFIX + 1, self.length + 1, 2), self.length])):
            works = [
                work(other, *((3 * step, 3 * step + 3) if other.row % 2 else (step, step + 1)), logit_start=3 * step + 3)
                for other in others
                if 3 * step + 3 <= self.length
            ]
            works.insert(min(step, len(works)), work(owner, start, end))
            rows = run(StepPlan(tuple(works), ()))
            logits.append(rows[-(end - start) :] if step >= len(works) else self._own(rows, works, owner))
        return [torch.cat(logits), self.kv(owner.slots)]

    def _own(self, rows: torch.Tensor, works: Sequence[Work], owner: Request) -> torch.Tensor:
        counts = [max(0, w.end - w.logit_start) for w in works]
        index = next(i for i, w in enumerate(works) if w.request is owner)
        return rows[sum(counts[:index]) :][: counts[index]]

    def on_a_mates_prefix(self, run: Run) -> list[torch.Tensor]:
        """What a mate computes in the same step is read, not computed."""
        self.fresh()
        mate = request([*self.ids[:PREFIX], *ids_of(20, seed=9)], self.take(PREFIX + 20), 0)
        owner = request(self.ids, [*mate.slots[:PREFIX], *self.take(self.length - PREFIX)], 1)
        plan = StepPlan((work(mate, 0, PREFIX + 20), work(owner, PREFIX, self.length)), ())
        logits = run(plan)
        return [torch.cat([logits[:PREFIX], logits[PREFIX + 20 :]]), self.kv(owner.slots)]

    def histories(self, run: Run) -> dict[str, list[torch.Tensor]]:
        every = range(self.length + 1)
        return {
            "at once": self.in_chunks(run, (0, self.length)),
            "in chunks": self.in_chunks(run, (0, 1, 4, 20, 37, self.length)),
            "token by token": self.in_chunks(run, every),
            "among 15 others": self.among_others(run),
            "on a mate's prefix": self.on_a_mates_prefix(run),
        }


def differing(histories: dict[str, list[torch.Tensor]]) -> list[str]:
    """Histories that differ from the first one in any bit of logits, keys or values."""
    first = next(iter(histories.values()))
    assert not first[0].isnan().any()
    return [name for name, got in histories.items() if not all(map(torch.equal, got, first))]


def tiny(kind: str, *, packed: bool = False) -> Any:
    model = load_tiny_model(kind).model
    install_attention(model)
    if packed:
        pack_linears(model)
    return model


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("llama", False), ("llama", True), ("mistral", True), ("gemma2", False), ("gpt2", True), ("mixtral", False)],
)
def test_every_history_gives_the_same_bits(kind: str, packed: bool) -> None:
    # Of experts, whose only size is one row, a shorter text: they have no window that it must leave.
    subject = Subject(tiny(kind, packed=packed), PREFIX + 7 if kind == "mixtral" else LENGTH)
    assert differing(subject.histories(subject.tiled)) == []


def test_histories_of_the_embedded_model_give_the_same_bits(embedded_model: LoadedModel) -> None:
    subject = Subject(embedded_model.model, length=44, sizes=(16, 32))
    histories = {
        "at once": subject.in_chunks(subject.tiled, (0, 44)),
        "in chunks, then decoded": subject.in_chunks(subject.tiled, (0, 3, 20, 41, 42, 43, 44)),
        "on a mate's prefix": subject.on_a_mates_prefix(subject.tiled),
    }
    assert differing(histories) == []


def test_the_fast_forward_is_seen_to_give_other_bits() -> None:
    subject = Subject(tiny("llama"))
    assert differing(subject.histories(subject.fast))


def test_a_size_that_the_probe_refuses_is_seen_to_give_other_bits() -> None:
    subject = Subject(tiny("mixtral"))
    assert subject.sizes == (1,), "experts compute as many rows as are routed to them"
    subject.sizes = (1, 16)
    assert not all(map(torch.equal, *(subject.in_chunks(subject.tiled, cuts) for cuts in ((0, 16), range(17)))))


def test_the_logits_are_those_of_the_fast_forward() -> None:
    subject = Subject(tiny("llama"))
    (tiled, _), (fast, _) = (subject.in_chunks(run, (0, 40, LENGTH)) for run in (subject.tiled, subject.fast))
    assert (tiled - fast).abs().max() <= 1e-5 * fast.abs().max()


def test_nodes_of_a_trie_have_the_bits_of_their_branch_in_a_row() -> None:
    subject = Subject(tiny("mistral"))
    choices = [tuple(ids_of(6, seed=3)), (5, 6, 7), (5, 6, 8, 9), (11, 12)]
    (trie,) = build_tries(choices, 100)
    subject.fresh()
    owner = request(subject.ids, subject.take(LENGTH + len(trie.tokens)), 1, branches=trie)
    end = len(owner.ids)
    steps = [(0, LENGTH - 2), (LENGTH - 2, LENGTH + 3), (LENGTH + 3, end)]
    logits = torch.cat([subject.tiled(StepPlan((work(owner, a, b),), ())) for a, b in steps])
    for node in range(len(trie.tokens)):
        subject.fresh()
        ids = [*subject.ids, *(trie.tokens[ancestor] for ancestor in trie.path(node))]
        branch = request(ids, subject.take(len(ids)))
        (row,) = subject.tiled(StepPlan((work(branch, 0, len(ids), logit_start=len(ids) - 1),), ()))
        assert torch.equal(logits[LENGTH + node], row)


def test_padding_is_stored_nowhere() -> None:
    subject = Subject(tiny("llama"), sizes=(16,))
    _, kv = subject.in_chunks(subject.tiled, (0, 3, LENGTH))
    everywhere = subject.kv(range(subject.pool.num_slots + 1))
    assert not kv.isnan().any()
    assert int((~everywhere.isnan()).any(dim=1).sum()) == LENGTH


def test_a_plan_that_wants_no_logits_gives_none() -> None:
    subject = Subject(tiny("llama"), sizes=SIZES)
    subject.fresh()
    owner = request(subject.ids, subject.take(LENGTH))
    logits = subject.tiled(StepPlan((work(owner, 0, LENGTH, logit_start=LENGTH),), ()))
    assert logits.shape == (0, subject.model.config.vocab_size)


def test_a_layer_that_does_not_attend_is_an_error() -> None:
    subject = Subject(tiny("llama"), sizes=SIZES)
    subject.fresh()
    owner = request(subject.ids, subject.take(LENGTH))
    del subject.model.model.layers[-1]
    with pytest.raises(RuntimeError, match="3 attention calls in a model of 4 layers"):
        subject.tiled(StepPlan((work(owner, 0, LENGTH),), ()))


# ---- cutting ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        (1, (1, 4, 16, 32), [1]),
        (3, (1, 4, 16, 32), [3]),  # a padded pass is cheaper than two
        (17, (1, 4, 16, 32), [17]),
        (100, (1, 4, 16, 32), [32, 32, 32, 4]),
        (33, (1, 16, 32, 64, 128), [32, 1]),
        (50, (1, 16, 32, 64, 128), [50]),
        (80, (1, 16, 32, 64, 128), [64, 16]),
        (100, (1, 16, 32, 64, 128), [100]),
        (70, (64,), [64, 6]),
        (40, (64,), [40]),
        (3, (1,), [1, 1, 1]),
    ],
)
def test_a_step_is_cut_into_few_tiles_with_little_padding(rows: int, sizes: tuple[int, ...], expected: list[int]) -> None:
    tiles = split_into_tiles([work(request(range(rows), range(rows)), 0, rows)], sizes)
    assert [sum(w.end - w.start for w in tile) for tile in tiles] == expected


def test_cut_works_cover_every_token_in_order_and_only_their_last_parts_sample() -> None:
    owners = [request(range(100), range(100), row) for row in range(3)]
    works = [
        work(owners[0], 9, 10, logit_start=9, sample=True),
        work(owners[1], 20, 71, logit_start=50),
        work(owners[2], 0, 60, logit_start=59, sample=True),
    ]
    parts = [part for tile in split_into_tiles(works, SIZES) for part in tile]
    for given in works:
        own = [part for part in parts if part.request is given.request]
        assert [t for part in own for t in range(part.start, part.end)] == list(range(given.start, given.end))
        wanted = [t for part in own for t in range(part.logit_start, part.end)]
        assert wanted == list(range(given.logit_start, given.end))
        assert [part.sample for part in own] == [False] * (len(own) - 1) + [given.sample]


def test_a_tile_is_padded_to_a_size_and_so_are_its_rows_of_logits() -> None:
    table = SlotTable(2, 64, CPU)
    owner = request(range(100, 140), range(40))
    table.update([work(owner, 0, 9)])
    tile = build_tile([work(owner, 0, 9, logit_start=7)], table, SIZES)
    assert tile.input_ids.tolist() == [[*range(100, 109), *[0] * 7]]
    assert tile.position_ids.tolist() == [[*range(9), *[0] * 7]]
    assert tile.out_loc.tolist() == list(range(9))
    assert (tile.logit_rows.tolist(), tile.num_logits) == ([7, 8, 7, 7], 2)


# ---- the probe -------------------------------------------------------------------------------------------------------
class Fake(torch.nn.Module):
    """A model of one embedding whose rows are changed by ``disturb(ids)``."""

    def __init__(self, disturb: Callable[[torch.Tensor], torch.Tensor | float]) -> None:
        super().__init__()
        self._embedding = torch.nn.Embedding(50, 8)
        self._disturb = disturb
        self.device = CPU

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self._embedding

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        class Output:
            logits = self._embedding(input_ids) + position_ids.unsqueeze(-1) + self._disturb(input_ids[0])

        return Output


@pytest.mark.parametrize(
    ("disturb", "expected"),
    [
        (lambda ids: 0.0, (1, 2, 4, 8, 16, 32, 64, 128)),
        (lambda ids: float(len(ids) in (2, 64)), (1, 4, 8, 16, 32, 128)),
        (lambda ids: (torch.arange(len(ids)) == 100).unsqueeze(-1).float(), (1, 2, 4, 8, 16, 32, 64)),
        (lambda ids: (torch.arange(len(ids)) % 16 == 5).unsqueeze(-1).float(), (1,)),
        (lambda ids: ids.sum(), (1,)),
        (lambda ids: float(len(ids.unique()) == 2), (1,)),  # only a row that stands alone among equal ones tells
    ],
    ids=["nothing", "two sizes", "one place of a large size", "a place", "company", "being alone"],
)
def test_the_probe_keeps_the_sizes_in_which_rows_depend_on_nothing_else(disturb: Any, expected: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert agreeing_tile_sizes(Fake(disturb), 100) == expected


def test_the_probe_of_packed_linears_keeps_single_rows() -> None:
    assert agreeing_tile_sizes(tiny("llama", packed=True), TINY_CONTEXT)[0] == 1


def test_the_probe_draws_the_same_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[int]]] = [[], []]
    for calls in seen:
        original = tiling.run_packed

        def record(model: Any, ids: torch.Tensor, *rest: Any, calls: list[list[int]] = calls) -> torch.Tensor:
            calls.append(ids[0].tolist())
            return run_packed(model, ids, *rest)

        monkeypatch.setattr(tiling, "run_packed", record)
        agreeing_tile_sizes(Fake(lambda ids: 0.0), 100)
        monkeypatch.setattr(tiling, "run_packed", original)
    assert seen[0] == seen[1] != []

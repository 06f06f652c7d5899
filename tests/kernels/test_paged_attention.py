"""Paged attention against the eager reference, in float64 where the bound is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sgl_kernels import (
    DecodeBucket,
    ExtendRow,
    GatherScratch,
    SharedRun,
    StepLayout,
    merge_states,
    paged_attention,
    paged_attention_reference,
    segment_attention,
    store_kv,
)
from sgl_kernels.checks import ShapeError

HEADS, KV_HEADS, DIM = 6, 2, 16
SCALE = DIM**-0.5


@dataclass
class Packed:
    """A packed batch in a pool whose foreign slots are NaN, so that a read outside shows."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    out_loc: torch.Tensor


def packed(new_slots: list[int], used_slots: list[int], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Packed:
    gen = torch.Generator().manual_seed(seed)
    size = max(used_slots) + 8

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    pools = [torch.full((size, KV_HEADS, DIM), float("nan"), dtype=dtype) for _ in range(2)]
    for pool in pools:
        pool[used_slots] = rand(len(used_slots), KV_HEADS, DIM)
    total = len(new_slots)
    batch = Packed(
        rand(total, HEADS, DIM), rand(total, KV_HEADS, DIM), rand(total, KV_HEADS, DIM), *pools, torch.tensor(new_slots)
    )
    store_kv(batch.k, batch.v, batch.k_pool, batch.v_pool, batch.out_loc)
    return batch


def close(got: torch.Tensor, batch: Packed, q_lens: list[int], kv_slots: list[list[int]]) -> None:
    """Error of ``got`` against float64 is at most twice that of the eager reference in the working dtype (plus one ulp)."""
    slots = [torch.tensor(s) for s in kv_slots]
    exact = paged_attention_reference(
        batch.q.double(), batch.k_pool.double(), batch.v_pool.double(), q_lens, slots, scale=SCALE
    )
    eager = paged_attention_reference(batch.q, batch.k_pool, batch.v_pool, q_lens, slots, scale=SCALE)
    assert not got.isnan().any(), "a slot that no sequence owns was read"
    bound = 2 * (eager.double() - exact).norm() + 8 * torch.finfo(got.dtype).eps * exact.norm()
    assert (got.double() - exact).norm() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_batch_of_shared_runs_decodes_and_extends_equals_the_reference(dtype: torch.dtype) -> None:
    shared, own_a, own_b, own_c = list(range(20, 90)), [3, 9, 5], [11], [100, 101, 102, 103]
    new = [0, 1, 2, 6, 7, 8]  # a: decode at 0; b: decode at 1; c: extend 2, 6, 7; d: extend 8 alone, without a prefix
    used = shared + own_a + own_b + own_c + new
    batch = packed(new, used, dtype=dtype)
    a, b = own_a + [0], own_b + [1]
    padded = torch.tensor([a, b + [1, 1]])
    bias = torch.zeros(2, 1, 1, 4, dtype=dtype)
    bias[1, ..., 2:] = float("-inf")
    layout = StepLayout(
        batch.out_loc,
        shared=(SharedRun(torch.tensor([0, 1, 2, 3, 4]), slice(20, 90)),),
        decodes=(DecodeBucket(torch.tensor([0, 1]), padded, bias),),
        extends=(ExtendRow(2, 5, slice(100, 104)), ExtendRow(5, 6, None)),
    )
    got = paged_attention(batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE)
    close(got, batch, [1, 1, 3, 1], [shared + a, shared + b, shared + own_c + [2, 6, 7], [8]])


@pytest.mark.parametrize("cached", [0, 1, 37])
@pytest.mark.parametrize("new", [1, 2, 33])
def test_extend_on_scattered_prefix_equals_the_reference(cached: int, new: int) -> None:
    slots = torch.randperm(128, generator=torch.Generator().manual_seed(1)).tolist()
    prefix, fresh = slots[:cached], slots[64 : 64 + new]
    batch = packed(fresh, prefix + fresh)
    row = ExtendRow(0, new, torch.tensor(prefix) if prefix else None)
    layout = StepLayout(batch.out_loc, (), (), (row,))
    got = paged_attention(batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE)
    close(got, batch, [new], [prefix + fresh])


def test_two_levels_of_sharing_merge_to_the_reference() -> None:
    root, branch, own = list(range(64)), list(range(70, 90)), [95, 99]
    batch = packed([65, 66, 67], root + branch + own + [65, 66, 67])
    layout = StepLayout(
        batch.out_loc,
        shared=(SharedRun(torch.tensor([0, 1, 2]), torch.tensor(root)), SharedRun(torch.tensor([0, 1]), slice(70, 90))),
        decodes=(
            DecodeBucket(torch.tensor([0]), torch.tensor([[95, 99, 65]]), None),
            DecodeBucket(torch.tensor([1, 2]), torch.tensor([[66], [67]]), None),
        ),
        extends=(),
    )
    got = paged_attention(batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE)
    close(got, batch, [1, 1, 1], [root + branch + own + [65], root + branch + [66], root + [67]])


def test_a_consecutive_own_segment_is_read_as_a_view() -> None:
    batch = packed([40], list(range(10, 41)))
    layout = StepLayout(batch.out_loc, (), (DecodeBucket(torch.tensor([0]), slice(10, 41), None),), ())
    got = paged_attention(batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE)
    close(got, batch, [1], [list(range(10, 41))])


def test_rows_given_as_slices_are_the_rows_given_as_indices() -> None:
    shared, own_a, own_b = list(range(20, 50)), [3, 9], [11, 12]
    batch = packed([0, 1], shared + own_a + own_b + [0, 1])
    slots = torch.tensor([own_a + [0], own_b + [1]])

    def attend(rows: torch.Tensor | slice) -> torch.Tensor:
        layout = StepLayout(batch.out_loc, (SharedRun(rows, slice(20, 50)),), (DecodeBucket(rows, slots, None),), ())
        return paged_attention(batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE)

    got = attend(slice(0, 2))
    assert torch.equal(got, attend(torch.tensor([0, 1])))
    close(got, batch, [1, 1], [shared + own_a + [0], shared + own_b + [1]])


@pytest.mark.parametrize("max_bytes", [1 << 20, 256])
def test_scratch_is_used_again_by_steps_of_any_size_in_and_out_of_inference_mode(max_bytes: int) -> None:
    scratch = GatherScratch(max_bytes)
    for lengths in ((3, 5), (40, 20), (2, 7)):
        slots = torch.randperm(96, generator=torch.Generator().manual_seed(2)).tolist()
        own = [slots[: lengths[0]], slots[40 : 40 + lengths[1]]]
        batch = packed([own[0][-1], own[1][-1]], own[0] + own[1])
        buckets = tuple(DecodeBucket(torch.tensor([row]), torch.tensor([own[row]]), None) for row in range(2))
        layout = StepLayout(batch.out_loc, (), buckets, ())
        for inference in (True, False):
            with torch.inference_mode(inference):
                got = paged_attention(
                    batch.q, batch.k, batch.v, batch.k_pool, batch.v_pool, layout, scale=SCALE, scratch=scratch
                )
            close(got, batch, [1, 1], own)


def test_scratch_serves_pools_of_another_shape_and_dtype() -> None:
    scratch = GatherScratch()
    slots = torch.tensor([4, 0, 2])
    for pool in (torch.randn(6, 2, 8), torch.randn(6, 1, 4).double(), torch.randn(6, 3, 16).bfloat16()):
        assert torch.equal(scratch.gather(0, pool, slots), pool[slots])


def test_keys_and_values_do_not_share_scratch() -> None:
    scratch = GatherScratch()
    keys, values = torch.randn(2, 6, 2, 8)
    slots = torch.tensor([5, 1])
    gathered = scratch.gather(0, keys, slots)
    scratch.gather(1, values, slots)
    assert torch.equal(gathered, keys[slots])


def test_the_generic_and_the_cpu_segment_agree() -> None:
    gen = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(9, n, DIM, generator=gen) for n in (HEADS, KV_HEADS, KV_HEADS))
    for causal in (True, False):
        out, lse = segment_attention(q, k, v, scale=SCALE, causal=causal)
        # A value dimension that differs from the key's takes the generic path: pad with a column that is cut off again.
        wide, wide_lse = segment_attention(q, k, torch.cat([v, v[..., :1]], -1), scale=SCALE, causal=causal)
        assert torch.allclose(out, wide[..., :DIM], atol=1e-6)
        assert torch.allclose(lse, wide_lse, atol=1e-5)


def test_merging_two_halves_gives_the_whole() -> None:
    gen = torch.Generator().manual_seed(4)
    q = torch.randn(3, HEADS, DIM, generator=gen)
    k, v = torch.randn(2, 50, KV_HEADS, DIM, generator=gen)
    whole, whole_lse = segment_attention(q, k, v, scale=SCALE, causal=False)
    halves = [segment_attention(q, k[s], v[s], scale=SCALE, causal=False) for s in (slice(0, 17), slice(17, 50))]
    out, lse = merge_states(*halves[0], *halves[1])
    assert torch.allclose(out, whole, atol=1e-6)
    assert torch.allclose(lse, whole_lse, atol=1e-5)


def test_the_reference_honours_window_cap_and_sinks() -> None:
    gen = torch.Generator().manual_seed(5)
    q, k = (torch.randn(1, n, DIM, generator=gen, dtype=torch.float64) for n in (HEADS, 1))
    pool_k, pool_v = k.expand(4, 1, DIM).clone(), torch.arange(4.0, dtype=torch.float64).view(4, 1, 1).expand(4, 1, DIM).clone()
    slots = [torch.arange(4)]
    windowed = paged_attention_reference(q, pool_k, pool_v, [1], slots, scale=SCALE, sliding_window=2)
    assert torch.allclose(windowed, torch.full_like(windowed, 2.5))  # equal scores: the mean of values 2 and 3
    sinks = torch.full((HEADS,), 50.0, dtype=torch.float64)
    sunk = paged_attention_reference(q, pool_k, pool_v, [1], slots, scale=SCALE, sinks=sinks)
    assert sunk.abs().max() < 1e-15
    pool_k[0] *= 100
    capped = paged_attention_reference(q, pool_k, pool_v, [1], slots, scale=SCALE, softcap=1e-6)
    assert torch.allclose(capped, torch.full_like(capped, 1.5), atol=1e-5)  # the cap makes all scores equal


def test_a_wrong_shape_names_the_argument_and_both_shapes() -> None:
    pool = torch.zeros(8, KV_HEADS, DIM)
    with pytest.raises(ShapeError, match=r"v: got shape \[2, 2, 8\], expected \[2, 2, 16\]"):
        store_kv(torch.zeros(2, KV_HEADS, DIM), torch.zeros(2, KV_HEADS, 8), pool, pool, torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match=r"k: got torch\.float64"):
        store_kv(*torch.zeros(2, 2, KV_HEADS, DIM, dtype=torch.float64), pool, pool, torch.tensor([0, 1]))

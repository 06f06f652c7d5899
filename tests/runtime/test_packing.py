from __future__ import annotations

import gc
import platform
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgl_core.config import Environment
from sgl_core.runtime import packing
from sgl_core.runtime.fusion import FusionReport
from sgl_core.runtime.kv_pool import Bytes
from sgl_core.runtime.model_loader import load_model
from sgl_core.runtime.model_source import resolve_model
from sgl_core.runtime.packing import PackedProduct, PackReport, pack_linears

ENV = Environment(Path("/"), None, frozenset())
IDS = torch.arange(5, 45)[None]

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="linears are packed on x86 only")


@pytest.fixture
def load(tiny_model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    def loaded(kind: str, dtype: torch.dtype = torch.float32) -> Any:
        source = resolve_model(str(tiny_model_folder(kind)), ENV)
        return load_model(source, device=torch.device("cpu"), dtype=dtype).model

    return loaded


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 32)


def logits(model: Any) -> Tensor:
    return model(IDS, use_cache=False).logits


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def plain(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, linear.weight, linear.bias)


def is_packed(model: nn.Module) -> list[bool]:
    return ["forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(("kind", "groups", "fused", "packed"), [
    ("llama", 4, 12, 4 * 7 + 1),
    ("qwen2", 2, 6, 2 * 7 + 1),
    ("gemma2", 2, 6, 2 * 7 + 1),  # its head is tied to the embedding
    ("phi3", 0, 0, 2 * 4 + 1),
    ("gpt2", 0, 0, 1),  # its layers are not nn.Linear
])  # fmt: skip
def test_packing_finds_every_linear_and_keeps_the_logits(
    load: Callable[[str], Any], kind: str, groups: int, fused: int, packed: int
) -> None:
    model = load(kind)
    before = logits(model)
    report = pack_linears(model)
    assert (report.fused, report.packed_linears) == (FusionReport(groups, fused), packed)
    assert relative(logits(model), before) <= 1e-6


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17, 33, 63, 64, 65, 131, 300, 513, 640])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_product_is_the_plain_one_for_every_number_of_rows(rows: int, bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(192, 160, bias=bias)
    packed = nn.Sequential(layer)
    x = torch.randn(1, rows, 192)
    want = plain(layer, x)
    assert pack_linears(packed).packed_linears == 1
    assert relative(packed(x), want) <= 1e-6


def test_the_library_sees_few_numbers_of_rows_and_few_rows_are_added(
    linear: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_linears(nn.Sequential(linear))
    seen: dict[int, int] = {}

    def counted(x: Tensor, *args: object) -> Tensor:
        seen[rows] = x.shape[:-1].numel()
        return x.new_zeros(*x.shape[:-1], 32)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    x = torch.zeros(2_112, 48)
    for rows in range(1, 2_113):
        assert linear(x[:rows]).shape == (rows, 32)
    assert len(set(seen.values())) <= 84
    assert all(seen[rows] == rows for rows in range(1, 16))
    assert all(rows <= given <= rows * 9 / 8 for rows, given in seen.items())


def test_the_bytes_of_packed_weights_are_counted(linear: nn.Linear) -> None:
    assert pack_linears(nn.Sequential(linear)) == PackReport(FusionReport(0, 0), 1, 4 * 48 * 32)


def test_state_dict_and_classes_are_unchanged_by_packing(load: Callable[[str], Any]) -> None:
    model = load("gemma2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    pack_linears(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in model.modules()] == classes
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_packed_group_leaves_its_parameters_where_they_were(load: Callable[[str], Any]) -> None:
    model = load("llama")
    attention = model.model.layers[0].self_attn
    addresses = [linear.weight.data_ptr() for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    pack_linears(model)
    assert [p.weight.data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)] == addresses


def test_packing_twice_does_nothing_the_second_time(load: Callable[[str], Any]) -> None:
    model = load("llama")
    pack_linears(model)
    assert pack_linears(model) == PackReport(FusionReport(0, 0), 0, 0)


def test_bfloat16_gives_the_plain_results_whether_the_processor_packs_it_or_not(load: Callable[[str], Any]) -> None:
    model = load("llama", torch.bfloat16)
    before = logits(model).float()
    report = pack_linears(model)
    assert report.fused == FusionReport(4, 12)
    assert report.packed_linears in (0, 29)
    assert relative(logits(model).float(), before) <= 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("error", [RuntimeError("no such instruction"), AttributeError("no such operator")])
@pytest.mark.parametrize("operator", ["_reorder_linear_weight", "_linear_pointwise"])
def test_where_the_library_cannot_pack_the_model_is_only_fused(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, operator: str, error: Exception
) -> None:
    def refuse(*args: object) -> Tensor:
        raise error

    model = load("llama")
    before = logits(model)
    monkeypatch.setattr(torch.ops.mkldnn, operator, refuse)
    assert pack_linears(model) == PackReport(FusionReport(4, 12), 0, 0)
    assert relative(logits(model), before) <= 1e-6


def test_a_library_that_multiplies_wrongly_is_found_and_not_used(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    before = logits(model)
    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: real(*args) * 1.001)
    assert pack_linears(model) == PackReport(FusionReport(4, 12), 0, 0)
    assert relative(logits(model), before) <= 1e-6


def test_a_model_that_would_take_most_of_the_free_memory_is_only_fused(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llama")
    monkeypatch.setattr(packing, "available_host_bytes", lambda: Bytes(1 << 16))
    assert pack_linears(model) == PackReport(FusionReport(4, 12), 0, 0)


def test_other_dtypes_are_left_alone(linear: nn.Linear) -> None:
    model = nn.Sequential(linear.double())
    assert pack_linears(model).packed_linears == 0
    assert is_packed(model) == [False]


def test_subclasses_of_linear_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    assert pack_linears(nn.Sequential(Doubled(8, 8))).packed_linears == 0


def test_weights_written_in_place_are_used(linear: nn.Linear) -> None:
    pack_linears(nn.Sequential(linear))
    x = torch.randn(4, 48)
    linear.weight.mul_(3)
    assert torch.equal(linear(x), plain(linear, x))
    linear.bias.fill_(1)
    assert torch.equal(linear(x), plain(linear, x))


def test_a_member_of_a_packed_group_written_in_place_is_used(load: Callable[[str], Any]) -> None:
    model = load("llama")
    pack_linears(model)
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight.fill_(0)
    x = torch.randn(1, 4, 64)
    assert torch.equal(attention.q_proj(x), plain(attention.q_proj, x))
    assert attention.k_proj(x).abs().max().item() == 0


def test_a_model_moved_to_another_dtype_computes_with_its_new_weights(linear: nn.Linear) -> None:
    model = nn.Sequential(linear)
    pack_linears(model)
    model.double()
    x = torch.randn(4, 48, dtype=torch.float64)
    assert torch.equal(model(x), plain(linear, x))


def test_an_input_of_another_dtype_is_refused_as_ever(linear: nn.Linear) -> None:
    pack_linears(nn.Sequential(linear))
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(4, 48, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(48,), (0, 48), (2, 3, 48), (1, 0, 48)])
def test_inputs_of_any_number_of_dimensions_keep_their_shape(linear: nn.Linear, shape: tuple[int, ...]) -> None:
    pack_linears(nn.Sequential(linear))
    x = torch.randn(shape)
    got = linear(x)
    assert got.shape == (*shape[:-1], 32)
    torch.testing.assert_close(got, plain(linear, x))


def test_a_strided_input_is_read_by_its_strides(linear: nn.Linear) -> None:
    pack_linears(nn.Sequential(linear))
    x = torch.randn(48, 5).t()
    torch.testing.assert_close(linear(x), plain(linear, x))


def test_packing_works_in_inference_mode(load: Callable[[str], Any]) -> None:
    model = load("llama")
    before = logits(model)
    with torch.inference_mode():
        report = pack_linears(model)
        assert relative(logits(model), before) <= 1e-6
    assert report.packed_linears == 29
    assert not any(p.is_inference() for p in model.parameters())
    assert relative(logits(model), before) <= 1e-6  # and outside of it


def test_a_product_over_several_weights_stacks_them_with_their_biases() -> None:
    layers = [nn.Linear(16, width) for width in (8, 24, 8)]
    product = PackedProduct([layer.weight for layer in layers], [layer.bias for layer in layers])
    x = torch.randn(3, 16)
    torch.testing.assert_close(product(x), torch.cat([plain(layer, x) for layer in layers], dim=-1))


def test_a_dropped_model_frees_its_weights_without_the_cycle_collector() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    pack_linears(model)
    watched = weakref.ref(model[0].weight)
    gc.disable()
    try:
        del model
        assert watched() is None
    finally:
        gc.enable()

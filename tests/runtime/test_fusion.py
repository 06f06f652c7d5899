from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgl_core.config import Environment
from sgl_core.runtime.fusion import FusionReport, fuse_siblings
from sgl_core.runtime.model_loader import load_model
from sgl_core.runtime.model_source import resolve_model

ENV = Environment(Path("/"), None, frozenset())
IDS = torch.arange(5, 45)[None]


@pytest.fixture
def load(tiny_model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    def loaded(kind: str) -> Any:
        source = resolve_model(str(tiny_model_folder(kind)), ENV)
        return load_model(source, device=torch.device("cpu"), dtype=torch.float32).model

    return loaded


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def logits(model: Any) -> Tensor:
    return model(IDS, use_cache=False).logits


class Attention(nn.Module):
    """Three siblings of unequal widths, called as a test asks."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q_proj = nn.Linear(16, 16, bias=bias)
        self.k_proj = nn.Linear(16, 8, bias=bias)
        self.v_proj = nn.Linear(16, 8, bias=bias)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention()


def apart(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, linear.weight, linear.bias)


@pytest.mark.parametrize(("kind", "mlp", "groups", "linears"), [
    ("llama", False, 4, 12),
    ("llama", True, 8, 20),
    ("qwen2", False, 2, 6),
    ("gpt2", True, 0, 0),
    ("phi3", True, 0, 0),
    ("mixtral", False, 2, 6),
])  # fmt: skip
def test_fusion_finds_the_siblings_and_keeps_the_logits(
    load: Callable[[str], Any], kind: str, mlp: bool, groups: int, linears: int
) -> None:
    model = load(kind)
    before = logits(model)
    assert fuse_siblings(model, mlp=mlp) == FusionReport(groups, linears)
    assert (logits(model) - before).abs().max().item() <= 1e-6 * before.abs().max().item()


def test_by_default_gate_and_up_stay_apart_on_a_cpu(load: Callable[[str], Any]) -> None:
    assert fuse_siblings(load("llama")).num_groups == 4


def test_a_fused_forward_runs_one_product_for_q_k_and_v(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama")
    fuse_siblings(model, mlp=False)
    widths = []
    real = nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        widths.append(weight.shape[0])
        return real(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    logits(model)
    assert widths == [128, 64, 128, 128, 64] * 4 + [320]  # qkv, o, gate, up, down in each layer, then the head


def test_originals_become_views_of_one_storage(load: Callable[[str], Any]) -> None:
    model = load("llama")
    fuse_siblings(model, mlp=False)
    attention = model.model.layers[0].self_attn
    storages = {linear.weight.untyped_storage().data_ptr() for linear in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1
    storage = attention.q_proj.weight.untyped_storage()
    assert storage.nbytes() == 4 * 64 * (64 + 32 + 32)


def test_state_dict_is_unchanged_by_fusion(load: Callable[[str], Any]) -> None:
    model = load("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse_siblings(model, mlp=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_fusing_twice_does_nothing_the_second_time(load: Callable[[str], Any]) -> None:
    model = load("llama")
    fuse_siblings(model, mlp=True)
    assert fuse_siblings(model, mlp=True) == FusionReport(0, 0)


def test_siblings_with_different_inputs_compute_alone(attention: Attention) -> None:
    fuse_siblings(attention)
    x, y = torch.randn(3, 16), torch.randn(3, 16)
    for _ in range(5):
        torch.testing.assert_close(attention.q_proj(x), apart(attention.q_proj, x))
        torch.testing.assert_close(attention.k_proj(y), apart(attention.k_proj, y))
        torch.testing.assert_close(attention.v_proj(y), apart(attention.v_proj, y))


def test_the_order_of_calls_does_not_matter(attention: Attention) -> None:
    fuse_siblings(attention)
    for names in (("v_proj", "q_proj", "k_proj"), ("k_proj", "k_proj", "v_proj"), ("q_proj",), ("v_proj", "k_proj", "q_proj")):
        x = torch.randn(4, 16)
        for name in names:
            linear = getattr(attention, name)
            torch.testing.assert_close(linear(x), apart(linear, x))


def test_an_input_changed_in_place_is_not_answered_from_the_parked_slices(attention: Attention) -> None:
    fuse_siblings(attention)
    x = torch.randn(4, 16)
    attention.q_proj(x)
    x.mul_(2)
    torch.testing.assert_close(attention.k_proj(x), apart(attention.k_proj, x))


def test_nothing_is_kept_after_all_siblings_were_called(attention: Attention) -> None:
    fuse_siblings(attention)
    x = torch.randn(4, 16)
    outputs = [weakref.ref(linear(x)) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    watched = weakref.ref(x)
    del x
    assert watched() is None
    assert [ref() for ref in outputs] == [None, None, None]


def test_slices_that_nobody_takes_go_with_the_next_call(attention: Attention) -> None:
    fuse_siblings(attention)
    x = torch.randn(4, 16)
    attention.q_proj(x)
    watched = weakref.ref(x)
    del x
    assert watched() is not None  # k and v have not come yet
    y = torch.randn(4, 16)
    attention.q_proj(y)
    assert watched() is None


def test_a_whole_forward_keeps_no_activation(load: Callable[[str], Any]) -> None:
    model = load("llama")
    fuse_siblings(model, mlp=True)
    seen: list[weakref.ref[Tensor]] = []
    hook = model.model.layers[0].input_layernorm.register_forward_hook(
        lambda module, args, output: seen.append(weakref.ref(output))
    )
    logits(model)
    hook.remove()
    assert len(seen) == 1
    assert seen[0]() is None


def test_siblings_that_never_share_an_input_stop_trying(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse_siblings(attention)
    for _ in range(4):
        attention.q_proj(torch.randn(2, 16))
    widths = []
    real = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, w, b=None: (widths.append(w.shape[0]), real(x, w, b))[1])
    attention.q_proj(torch.randn(2, 16))
    assert widths == [16]


def test_a_model_moved_to_another_dtype_computes_with_its_new_weights(attention: Attention) -> None:
    fuse_siblings(attention)
    attention.to(torch.float64)
    x = torch.randn(4, 16, dtype=torch.float64)
    for linear in (attention.q_proj, attention.k_proj):
        assert torch.equal(linear(x), apart(linear, x))


def test_weights_written_in_place_are_seen_by_the_fused_product(attention: Attention) -> None:
    fuse_siblings(attention)
    attention.k_proj.weight.fill_(0)
    x = torch.randn(4, 16)
    attention.q_proj(x)
    assert attention.k_proj(x).abs().max().item() == 0


def test_only_linears_alike_are_grouped() -> None:
    module = Attention()
    module.k_proj = nn.Linear(16, 8, bias=True)  # the others have none
    assert fuse_siblings(module) == FusionReport(1, 2)
    x = torch.randn(2, 16)
    assert torch.equal(module.k_proj(x), apart(module.k_proj, x))


def test_biases_are_part_of_the_fused_product() -> None:
    module = Attention(bias=True)
    fuse_siblings(module)
    x = torch.zeros(1, 16)
    assert [torch.equal(linear(x)[0], linear.bias) for linear in (module.q_proj, module.k_proj, module.v_proj)] == [True] * 3


def test_subclasses_of_linear_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    module = Attention()
    module.q_proj, module.k_proj, module.v_proj = Doubled(16, 16), Doubled(16, 8), Doubled(16, 8)
    assert fuse_siblings(module) == FusionReport(0, 0)


def test_fusion_works_in_inference_mode(attention: Attention) -> None:
    fuse_siblings(attention)
    with torch.inference_mode():
        x = torch.randn(4, 16)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            torch.testing.assert_close(linear(x), apart(linear, x))


def test_fusing_in_inference_mode_leaves_ordinary_parameters(attention: Attention) -> None:
    with torch.inference_mode():
        fuse_siblings(attention)
    assert not any(p.is_inference() for p in attention.parameters())
    attention.q_proj.weight.fill_(0)
    assert attention.q_proj(torch.ones(1, 16)).abs().max().item() == 0


def test_a_dropped_model_frees_its_weights_without_the_cycle_collector() -> None:
    module = Attention()
    fuse_siblings(module)
    watched = weakref.ref(module.q_proj.weight)
    gc.disable()
    try:
        del module
        assert watched() is None
    finally:
        gc.enable()

"""Tiny random-weight models of many architectures, saved as ordinary Hugging Face folders.

For tests of loaders, runners and kernels: seeded, a few hundred kilobytes, made in a fraction of a second, with a byte-level
tokenizer and a ChatML template. The weights are drawn wider than usual, so that logits differ clearly and greedy text does
not hang on rounding. torch and transformers are imported when a model is built, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_core.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sgl_core.runtime.model_loader import LoadedModel

__all__ = ["TINY_CONTEXT", "TINY_KINDS", "TINY_VOCAB", "build_tiny_model", "load_tiny_model"]

TINY_CONTEXT = 512
TINY_VOCAB = 320

_ROLES = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
_CONTROL = tuple(_ROLES.values())
_MERGES = "Ġ t|h e|i n|Ġ a|o n|r e|Ġt he|e r|Ġ s|a t|i s|e n|o r|Ġ w|Ġ c|in g|e s|a n|o u|l l|a l|1 2|Ġ 1|t he"
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA: dict[str, Any] = {
    **_SIZES,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
    "max_position_embeddings": TINY_CONTEXT,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "num_hidden_layers": 4},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 16},
    "mistral": {**_LLAMA, "sliding_window": 32},
    "gemma2": {**_LLAMA, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "phi3": _LLAMA,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": TINY_CONTEXT, "initializer_range": 0.2},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {**_SIZES, "alibi": False, "new_decoder_architecture": False, "initializer_range": 0.2},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2},
}
TINY_KINDS = tuple(_CONFIGS)


def build_tiny_model(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny model of type ``kind`` with its tokenizer into ``folder``.

    Args:
        kind: one of TINY_KINDS.
        folder: made if it does not exist.
        seed: of the weights; torch's own generator is left as it was.

    Returns:
        ``folder``.

    Raises:
        InvalidArgumentError: an unknown kind.
    """
    from sgl_core.runtime.model_loader import quiet_transformers

    model, tokenizer = _make(kind, seed, "cpu")
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def load_tiny_model(kind: str, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> LoadedModel:
    """A tiny model in memory, its random weights made on ``device``; no file is read or written.

    Args:
        kind: one of TINY_KINDS.
        device: as torch names it. ``dtype``: a name of ``sgl_core.config.DTYPES``.
        seed: of the weights. Devices draw different numbers from one seed.

    Raises:
        InvalidArgumentError: an unknown kind.
    """
    import torch

    from sgl_core.runtime.model_loader import LoadedModel

    model, tokenizer = _make(kind, seed, device)
    model.to(getattr(torch, dtype)).eval().requires_grad_(False)
    eos = frozenset({int(tokenizer.eos_token_id)})
    return LoadedModel(model, tokenizer, model.config, eos, TINY_CONTEXT, f"tiny-{kind}-{seed}", f"tiny {kind}", Path())


def _make(kind: str, seed: int, device: str) -> tuple[Any, PreTrainedTokenizerBase]:
    if kind not in _CONFIGS:
        raise InvalidArgumentError("kind", kind, f"one of {', '.join(TINY_KINDS)}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sgl_core.runtime.model_loader import quiet_transformers

    tokenizer = _byte_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(kind, vocab_size=TINY_VOCAB, **_CONFIGS[kind], **ids)
    generators = [torch.device(device)] if device.startswith("cuda") else []
    with quiet_transformers(), torch.random.fork_rng(devices=generators), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomise_biases(model)
    return model, tokenizer


def _randomise_biases(model: Any) -> None:
    """Initialisation leaves biases zero and norms one; a test could then not tell whether they are used."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _byte_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, a few merges and the ChatML control tokens: TINY_VOCAB is not filled, as in many real models."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES.split("|"))]
    spellings = [*_CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocab = {spelling: index for index, spelling in enumerate(dict.fromkeys(spellings))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(spelling, special=True, normalized=False) for spelling in _CONTROL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **_ROLES,
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer

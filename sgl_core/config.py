"""Configuration: the engine's options, and the one place where the environment is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sgl_core.errors import InvalidArgumentError, check_options

__all__ = ["DTYPES", "POLICIES", "EngineConfig", "Environment"]

POLICIES = ("lpm", "dfs_weight", "fcfs", "priority", "random")
DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")


def _positive(name: str, value: object, or_none: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(name, value, f"a positive int{or_none}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine; the arguments of ``Engine(...)``.

    Args:
        model: None for the embedded default, a folder, a ``.gguf`` file, or a Hugging Face name.
        device: "cpu", "cuda" or "cuda:N"; None is cuda if there is one.
        dtype: "float32", "bfloat16" or "float16"; None is bfloat16 where the processor is fast at it, else float32.
        cache_tokens: slots in the KV pool, one token each; None sizes it from memory.
        prefix_cache: False shares nothing (for comparisons).
        in_flight_sharing: False lets only finished prefills be shared, not those under way (for comparisons).
        cascade: False attends to a shared prefix once per request instead of once per batch (for comparisons).
        cache_levels: levels of the prefix tree that may be matched; None is all, 1 a cache without depth (for comparisons).
        namespace_quota_tokens: cached tokens that one namespace may keep while nobody uses them, so that one tenant cannot
            push out all of another's; None is no limit.
        policy: order of admission. "lpm": longest cached prefix first; "dfs_weight": the prefix that most waiting requests
            share first; both by priority class, and none is passed over without end. "fcfs": by arrival alone.
            "priority": by priority, then arrival. "random": for comparisons.
        max_running: requests in one batch.
        prefill_chunk_tokens: prompt tokens per step at most; None is the default of the device.
        max_queued: waiting requests at most; None is no limit.
        deterministic: every result is the same to the last bit whatever the batch, the cache and the chunks were; slower.
        verify: compute every generation a second time, alone and without the cache, and compare: a difference that rounding
            does not explain is a VerificationError. At least doubles the work.
        threads: CPU threads of torch; None leaves torch's choice.
        seed: start of the seeds drawn for requests without one; None is OS entropy.
        default_max_new_tokens: budget of a request that names none.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_tokens: int | None = None
    prefix_cache: bool = True
    in_flight_sharing: bool = True
    cascade: bool = True
    cache_levels: int | None = None
    namespace_quota_tokens: int | None = None
    policy: str = "lpm"
    max_running: int = 64
    prefill_chunk_tokens: int | None = None
    max_queued: int | None = None
    deterministic: bool = False
    verify: bool = False
    threads: int | None = None
    seed: int | None = None
    default_max_new_tokens: int = 512

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidArgumentError: for the first field that is out of range.
        """
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise InvalidArgumentError("model", self.model, "None, a folder, a .gguf file or a Hugging Face name")
        if self.device is not None and (not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device)):
            raise InvalidArgumentError("device", self.device, 'None, "cpu", "cuda" or "cuda:N"')
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InvalidArgumentError("dtype", self.dtype, f"None or one of {', '.join(DTYPES)}")
        if self.policy not in POLICIES:
            raise InvalidArgumentError("policy", self.policy, f"one of {', '.join(POLICIES)}")
        for name in (
            "cache_tokens",
            "cache_levels",
            "namespace_quota_tokens",
            "prefill_chunk_tokens",
            "max_queued",
            "threads",
        ):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name), ", or None for the default")
        for name in ("max_running", "default_max_new_tokens"):
            _positive(name, getattr(self, name))
        for name in ("prefix_cache", "in_flight_sharing", "cascade", "deterministic", "verify"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgumentError(name, getattr(self, name), "True or False")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise InvalidArgumentError("seed", self.seed, "None or an int >= 0")

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Build from keywords, refusing unknown ones with the nearest known name."""
        check_options("Engine option", options, (f.name for f in fields(cls)))
        return cls(**options)


@dataclass(frozen=True, slots=True)
class Environment:
    """What we read from the process environment.

    Args:
        cache_dir: where converted weights are kept (``SGL_CACHE_DIR``).
        default_model: replaces the embedded default (``SGL_MODEL``).
        disabled_adapters: names from ``SGL_DISABLED_ADAPTERS``, separated by commas.
    """

    cache_dir: Path
    default_model: str | None
    disabled_adapters: frozenset[str]

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Environment:
        """Read the variables above.

        Raises:
            InvalidArgumentError: ``SGL_CACHE_DIR`` is not an absolute path.
        """
        base = environ.get("SGL_CACHE_DIR")
        if base is None:
            base = os.path.join(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sgl-core")
        elif not os.path.isabs(base):
            raise InvalidArgumentError("SGL_CACHE_DIR", base, "an absolute path")
        disabled = frozenset(n.strip() for n in environ.get("SGL_DISABLED_ADAPTERS", "").split(",") if n.strip())
        return cls(Path(base), environ.get("SGL_MODEL") or None, disabled)

"""Options that several subcommands share: which model, on what, and which program with which arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_core.config import DTYPES, EngineConfig
from sgl_core.types import SEED_BITS

__all__ = ["add_model_options", "add_program_options", "engine_config"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--model``, ``--dtype`` and ``--device``."""
    parser.add_argument("--model", help="a folder, a .gguf file or a name (default: the embedded SmolLM2-135M-Instruct)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 where the processor is fast at it, else float32")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def add_program_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``FILE``, its arguments, the model options, ``--max-new-tokens`` and ``--seed``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a Python file")
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="arguments",
        help="an argument of the program: JSON, else text; once for each",
    )
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="budget of a generation that names none (default: 512)")
    parser.add_argument("--seed", type=_seed, metavar="N", help="seed of the program (default: a fresh one)")


def engine_config(options: argparse.Namespace) -> EngineConfig:
    """The engine that these options ask for.

    Raises:
        InvalidArgumentError: one of them is out of range.
    """
    chosen = {name: getattr(options, name) for name in ("model", "dtype", "device")}
    budget = getattr(options, "max_new_tokens", None)
    return EngineConfig(**chosen) if budget is None else EngineConfig(**chosen, default_max_new_tokens=budget)


def _seed(text: str) -> int:
    if text.isdecimal() and (seed := int(text)) < 1 << SEED_BITS:
        return seed
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0 to 2**{SEED_BITS} - 1")

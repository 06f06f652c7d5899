"""``sgl info``: what is installed here, and what an engine without options would use."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any

from sgl_core import __version__
from sgl_core.config import Environment
from sgl_core.errors import SglError

__all__ = ["add_parser", "gather", "main"]


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "info",
        parents=[common],
        help="versions, device, default model and cache folder",
        description="Show what is installed here, and what an engine without options would use.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print it; 0."""
    facts = gather()
    if options.json:
        json.dump(facts, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact is not None:
            table.add_row(name.replace("_", " "), str(fact))
    Console().print(table, highlight=False)
    return 0


def gather() -> dict[str, Any]:
    """Facts by name; None where there is none.

    Raises:
        InvalidArgumentError: ``SGL_CACHE_DIR`` is not an absolute path.
    """
    environment = Environment.read()
    return {
        "sgl_core": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        **_hardware(),
        **_default_model(environment),
        "cache_dir": str(environment.cache_dir),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    """What the runtime would choose; None without it."""
    if importlib.util.find_spec("torch") is None:
        return {"device": None, "gpu": None, "cpu_threads": None, "dtype": None}
    import torch

    from sgl_core.runtime.model_loader import default_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu_threads": torch.get_num_threads(),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
    }


def _default_model(environment: Environment) -> dict[str, Any]:
    """Where the default model is, or why it is not there and what to do."""
    from sgl_core.runtime.model_source import resolve_model

    try:
        source = resolve_model(None, environment)
    except SglError as error:
        return {"default_model": None, "model_path": None, "default_model_missing": str(error)}
    return {"default_model": source.name, "model_path": str(source.path), "default_model_missing": None}

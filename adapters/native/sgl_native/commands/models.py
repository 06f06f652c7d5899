"""``sgl models``: the models on this machine, and whether they can be served."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from sgl_core.config import Environment
from sgl_native.local_models import LocalModel, local_models

__all__ = ["add_parser", "main"]

_DESCRIPTION = """\
List the embedded model, converted ones and those in the Hugging Face cache of this machine, by what --model takes for them.
Never uses the network.
"""
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "models", parents=[common], help="the models on this machine, and which of them can be served", description=_DESCRIPTION
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print them; 0."""
    models = local_models(Environment.read())
    if options.json:
        json.dump([dataclasses.asdict(model) for model in models], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(models)
    return 0


def _print_table(models: Sequence[LocalModel]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold", min_width=28)
    table.add_column("architecture", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("found", no_wrap=True)
    table.add_column("supported")
    for model in models:
        cells = (model.model or model.name, model.architecture or "?", _size(model.size_bytes), model.source, _verdict(model))
        table.add_row(*map(Text, cells))
    Console().print(table, highlight=False)
    if not models:
        Console().print("No model was found on this machine; sgl info says how to get the embedded one.")


def _verdict(model: LocalModel) -> str:
    answer = {True: "yes", False: "no", None: "perhaps"}[model.supported]
    return f"{answer}: {model.note}" if model.note else answer


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"

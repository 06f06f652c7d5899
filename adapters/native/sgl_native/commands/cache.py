"""``sgl cache FILE``: runs a program, then draws what it left in the prefix cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sgl_core.backend import TextCodec
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError
from sgl_core.language import SglFunction
from sgl_core.runtime.snapshot import TreeSnapshot
from sgl_native import engines
from sgl_native.commands.options import add_program_options, engine_config
from sgl_native.programs import bind_arguments, load_program, parse_arguments, run_program

__all__ = ["add_parser", "main"]

_DESCRIPTION = """\
Run a program as sgl run does, then draw the tree of prefixes that it left in the cache: for every node its tokens, how many
sequences share them, and its text. Nodes without a branching between them stand under each other.
"""
_EPILOG = """\
examples:
  sgl cache examples/tree_of_thought.py
  sgl cache examples/essay_judge.py --svg tree.svg
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "cache",
        parents=[common],
        help="run a program and draw the prefix tree it leaves",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_program_options(parser)
    parser.add_argument("--svg", type=Path, metavar="OUT", help="also write the tree as a picture")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Run the program and draw; 0 when both are done."""
    from sgl_native.drawing import print_tree
    from sgl_native.svg import tree_svg

    config = engine_config(options)
    _check_paths(options)
    program = bind_arguments(load_program(options.file), parse_arguments(options.arguments))
    snapshot, codec = _tree_after(program, config, options)
    print_tree(snapshot, codec)
    if options.svg is not None:
        picture = tree_svg(snapshot, codec, f"Prefix tree of {options.file.name}")
        try:
            options.svg.write_text(picture, encoding="utf-8")
        except OSError as error:
            raise InvalidArgumentError("--svg", str(options.svg), f"a file that can be written ({error.strerror})") from error
        sys.stderr.write(f"sgl: wrote {options.svg}\n")
    return 0


def _check_paths(options: argparse.Namespace) -> None:
    """What can be refused before a model is loaded."""
    if options.file.is_dir():
        cure = "This version draws the tree of a program that it runs; a saved tree cannot be drawn yet."
        raise InvalidArgumentError("FILE", str(options.file), "a Python file, not a folder", cure)
    if options.svg is not None and not options.svg.parent.is_dir():
        raise InvalidArgumentError("--svg", str(options.svg), "a file in a folder that exists")


def _tree_after(program: SglFunction, config: EngineConfig, options: argparse.Namespace) -> tuple[TreeSnapshot, TextCodec]:
    from rich.console import Console

    with Console(stderr=True).status("loading the model") as status:
        engine = engines.open_engine(config)
        try:
            status.update(f"running {options.file.name}")
            run_program(program, engine, options.seed)
            return engine.tree(), engine.codec
        finally:
            engine.close()

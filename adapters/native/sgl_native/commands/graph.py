"""``sgl graph FILE``: compiles a program without running it, and shows its graph: as a listing, a picture or data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from sgl_core.errors import GraphError, InvalidArgumentError, TraceError
from sgl_core.language.graph import Graph
from sgl_core.language.graph_drawing import to_dot, to_mermaid
from sgl_core.language.graph_json import to_json
from sgl_core.language.graph_svg import to_svg
from sgl_core.language.graph_text import to_text
from sgl_core.language.readable import one_line
from sgl_native.programs import load_program, parse_arguments, program_errors

__all__ = ["add_parser", "main"]

_DESCRIPTION = """\
Trace a program without a model and show its graph: what it appends, what it generates, what runs in parallel, and where values
go. Without an option the graph is listed on the terminal.
"""
_EPILOG = """\
examples:
  sgl graph examples/few_shot_classification.py
  sgl graph examples/essay_judge.py --static 'dimensions=["clarity", "style"]' --svg judge.svg
"""
_FORMATS: Final[Mapping[str, tuple[str, Callable[[Graph], str]]]] = {
    "dot": ("for Graphviz", to_dot),
    "mermaid": ("as a Mermaid flowchart", to_mermaid),
    "json": ("as JSON, which from_json reads", lambda graph: to_json(graph, indent=2) + "\n"),
}


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "graph",
        parents=[common],
        help="show the graph of a program",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a Python file")
    parser.add_argument(
        "--static",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument that is fixed in the graph: JSON, else text; once for each",
    )
    parser.add_argument("--svg", type=Path, metavar="OUT", help="write a picture")
    for name, (words, _) in _FORMATS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="OUT", help=f"write the graph {words}")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Trace the program and show its graph; 0 when that is done."""
    chosen = [name for name in ("svg", *_FORMATS) if getattr(options, name) is not None]
    for name in chosen:
        if not getattr(options, name).parent.is_dir():
            raise InvalidArgumentError(f"--{name}", str(getattr(options, name)), "a file in a folder that exists")
    graph = _traced(options)
    for name in chosen:
        _write(f"--{name}", getattr(options, name), _document(name, graph, options.file))
    if not chosen:
        sys.stdout.write(to_text(graph) + "\n")
    return 0


def _traced(options: argparse.Namespace) -> Graph:
    static = parse_arguments(options.static, "--static")
    program = load_program(options.file)
    program.signature.check_bindable("--static", list(static))
    with program_errors():
        try:
            return program.trace(static=static)
        except TraceError as error:
            if error.argument is not None:
                error.add_note(f"Here: --static {error.argument}=VALUE.")
            raise


def _document(name: str, graph: Graph, file: Path) -> str:
    if name == "svg":
        return to_svg(graph, f"Graph of {one_line(file.name)}")
    try:
        return _FORMATS[name][1](graph)
    except GraphError as error:
        raise InvalidArgumentError(
            f"--{name}", f"the graph of {file.name}", "a graph that can be written", str(error)
        ) from error


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError(option, str(path), f"a file that can be written ({error.strerror})") from error
    sys.stderr.write(f"sgl: wrote {path}\n")

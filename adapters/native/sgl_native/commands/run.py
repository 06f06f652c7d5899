"""``sgl run FILE``: runs a program once, or twice to compare, and shows values and token counts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any

from sgl_core.config import EngineConfig
from sgl_core.language import SglFunction
from sgl_core.types import SEED_BITS
from sgl_native import engines
from sgl_native.commands.options import add_program_options, engine_config
from sgl_native.programs import bind_arguments, load_program, parse_arguments, program_errors, run_program
from sgl_native.records import RunRecord

__all__ = ["add_parser", "main"]

_EPILOG = """\
examples:
  sgl run examples/essay_judge.py
  sgl run examples/tip_suggestion.py --arg topic="sleeping well" --arg 'tips=["a dark room", "fixed hours"]'
  sgl run judge.py --arg essay="$(cat essay.txt)" --arg 'dimensions=["style", "clarity"]' --json
"""

_UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff]")


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "run",
        parents=[common],
        help="run the program in a Python file",
        description="Run a Python file's only @sgl.function, or the one named main, and show what it gave and what it cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_program_options(parser)
    parser.add_argument("--json", action="store_true", help="print variables, text, messages, meta and stats as JSON")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--no-cache", action="store_true", help="share no prefix")
    cache.add_argument("--compare", action="store_true", help="run with and without the prefix cache, same seed, and compare")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Run the program; 0 when it finished."""
    config = dataclasses.replace(engine_config(options), prefix_cache=not options.no_cache)
    arguments = parse_arguments(options.arguments)
    with _stdout_kept_clean(options.json):
        program = bind_arguments(load_program(options.file), arguments)
        if options.compare and options.seed is None:
            options.seed = secrets.randbits(SEED_BITS)
        record = _run(program, config, options)
        uncached = None
        if options.compare:
            uncached = _run(program, dataclasses.replace(config, prefix_cache=False), options)
    _show(record, uncached, as_json=options.json)
    return 0


def _run(program: SglFunction, config: EngineConfig, options: argparse.Namespace) -> RunRecord:
    from rich.console import Console

    cache = "" if config.prefix_cache else " without the prefix cache"
    with Console(stderr=True).status("loading the model") as status:
        backend = engines.open_engine(config)
        try:
            status.update(f"running {options.file.name}{cache}")
            started = time.perf_counter()
            state = run_program(program, backend, options.seed)
            with program_errors():
                return RunRecord.of(state, backend, time.perf_counter() - started)
        finally:
            backend.close()


@contextlib.contextmanager
def _stdout_kept_clean(clean: bool) -> Iterator[None]:
    """Send what the program prints to stderr, so that stdout holds the document and nothing else."""
    with contextlib.redirect_stdout(sys.stderr) if clean else contextlib.nullcontext():
        yield


def _show(record: RunRecord, uncached: RunRecord | None, *, as_json: bool) -> None:
    from sgl_native import report

    if as_json:
        document = record.as_json()
        if uncached is not None:
            document["without_cache"] = uncached.as_json()
        sys.stdout.write(_escaped(json.dumps(document, ensure_ascii=False, indent=2)) + "\n")
    elif uncached is not None:
        report.print_comparison(record, uncached)
    else:
        report.print_record(record)


def _escaped(document: str) -> str:
    """JSON without the control characters that it lets stand, so that it cannot command a terminal; it says the same."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", document)

"""The ``sgl`` command: chooses a subcommand, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 the program failed; 2 it was called wrongly or could not start; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from sgl_core import __version__
from sgl_core.errors import MissingExtraError, SglError
from sgl_native.commands import cache, chat, graph, info, models, run
from sgl_native.printable import without_controls
from sgl_native.programs import ProgramFailure, program_line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes them from the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.main(options))
    except ProgramFailure as failure:
        return _fail(failure.__cause__ or failure, 1, debug=options.debug)
    except SglError as error:
        return _fail(error, 2, debug=options.debug)
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        return _fail(MissingExtraError("runtime", "rich"), 2, debug=options.debug)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="sgl",
        description="Run LLM programs locally; every shared prefix is computed once.",
        epilog="sgl COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"sgl-core {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in (run, chat, cache, graph, models, info):
        command.add_parser(subparsers, common)
    return parser


def _fail(error: BaseException, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    else:
        text = _with_place(error)
        sys.stderr.write(f"sgl: error: {without_controls(text)}\n")  # a program may quote its model
    return code


def _with_place(error: BaseException) -> str:
    """An error with the line it came from: one of ours with the program's line, unless it names one, any other with its own."""
    if isinstance(error, SglError):
        text, line = " ".join([str(error), *getattr(error, "__notes__", ())]), program_line(error)
        return text if line in text else f"{text} ({line})"
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text

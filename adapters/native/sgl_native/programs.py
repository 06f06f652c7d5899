"""Programs in files: finds the function of a Python file, fits the arguments of a command line to it, and runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError, check_options
from sgl_core.language import ProgramState, SglFunction

__all__ = [
    "ProgramFailure",
    "bind_arguments",
    "load_program",
    "parse_arguments",
    "program_errors",
    "program_line",
    "run_program",
]

_MODULE_NAME = "sgl_program"


class ProgramFailure(Exception):
    """The program itself failed, as opposed to how it was called; ``__cause__`` is its error."""


@contextlib.contextmanager
def program_errors() -> Iterator[None]:
    """Mark every error from inside as the program's own.

    Raises:
        ProgramFailure: with the error as its cause.
    """
    try:
        yield
    except Exception as error:
        raise ProgramFailure(str(error)) from error


def program_line(error: BaseException) -> str:
    """The last line of the program's file that an error passed, as file:line; empty if there is none."""
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    own = (f"{f.f_code.co_filename}:{line}" for f, line in frames if f.f_globals.get("__name__") == _MODULE_NAME)
    return next(own, "")


def load_program(path: Path) -> SglFunction:
    """Run a Python file and return its program: its only ``@sgl.function``, or the one named ``main``.

    Functions that the file imports from elsewhere do not count. The file's folder becomes importable, as with ``python FILE``.

    Raises:
        InvalidArgumentError: no such file, or no function to choose.
        ProgramFailure: the file itself raises.
    """
    if not path.is_file():
        raise InvalidArgumentError("FILE", str(path), "a Python file")
    found: dict[str, SglFunction] = {}
    for name, value in vars(_run_module(path)).items():
        is_own = isinstance(value, SglFunction) and value.func.__module__ == _MODULE_NAME
        if is_own and value not in found.values():  # a second name for one function is no second program
            found[name] = value
    if "main" in found:
        return found["main"]
    if len(found) == 1:
        return next(iter(found.values()))
    cure = f"Name one of them main: {', '.join(sorted(found))}." if found else "Decorate a function with @sgl.function."
    raise InvalidArgumentError("FILE", str(path), f"a file with one @sgl.function or one named main, not {len(found)}", cure)


def parse_arguments(assignments: Sequence[str], option: str = "--arg") -> dict[str, Any]:
    """Read ``name=value`` pairs; a value that is JSON is taken as such, any other as a str.

    Args:
        assignments: as they were typed.
        option: behind which one; for the error.

    Raises:
        InvalidArgumentError: a pair has no name or no ``=``, or a name comes twice.
    """
    arguments: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgumentError(option, name, "name=value")
        if name in arguments:
            raise InvalidArgumentError(option, name, "each name once")
        try:
            arguments[name] = json.loads(text)
        except json.JSONDecodeError:
            arguments[name] = text
    return arguments


def bind_arguments(function: SglFunction, arguments: Mapping[str, Any]) -> SglFunction:
    """Give the function its arguments; those left out keep their defaults.

    Raises:
        InvalidArgumentError: some parameters have neither a value nor a default; all of them are named.
        UnknownOptionError: the function has no such parameter.
    """
    parameters = list(inspect.signature(function.func).parameters.values())[1:]  # the first is the state
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(named) == len(parameters):
        check_options("--arg", arguments, [p.name for p in named])
    given = {*function.bound, *arguments}
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        cure = "Add " + " ".join(f"--arg {name}=..." for name in missing) + "."
        raise InvalidArgumentError("--arg", sorted(arguments), f"a value for {', '.join(missing)}", cure)
    return function.bind(**arguments)


def run_program(program: SglFunction, backend: Backend, seed: int | None) -> ProgramState:
    """Run a program whose arguments are all bound, on this backend and with this seed whatever its parameters are called.

    ``run(backend=...)`` would give them to a function with parameters of these names, so it is called from one without any.

    Raises:
        ProgramFailure: the program fails.
    """

    def body(s: ProgramState) -> Any:
        return program(s)

    async def async_body(s: ProgramState) -> Any:
        return await program(s)

    caller = SglFunction(async_body if program.is_async else body)
    caller.name = program.name
    with program_errors():
        return caller.run(backend=backend, seed=seed)


def _run_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError("FILE", str(path), "a Python file, with the ending .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # dataclasses and type hints of the file look their module up
    sys.path.insert(0, str(path.resolve().parent))
    with program_errors():
        spec.loader.exec_module(module)
    return module

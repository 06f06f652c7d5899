"""What a program takes: the parameters of its function behind the state, and the arguments that are bound already."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgl_core.errors import InvalidArgumentError, UnknownOptionError

__all__ = ["Signature"]


class Signature:
    """The parameters of one function.

    Args:
        name: of the function, for errors.
        func: the function.
        bound: arguments that are fixed already.

    Attributes:
        parameters: by name, in order; those that are bound, too.
        takes_any: whether it takes any keyword.

    Raises:
        InvalidArgumentError: it cannot be a program's.
    """

    def __init__(self, name: str, func: Callable[..., Any], bound: Mapping[str, Any]) -> None:
        """Read the signature."""
        self.name = name
        self.bound = dict(bound)
        self.parameters, self.takes_any = _own_parameters(name, func)

    def check_bindable(self, where: str, names: Sequence[str]) -> None:
        """Refuse names that are no parameters.

        Raises:
            UnknownOptionError: for the first of them.
        """
        for name in names:
            if name not in self.parameters and not self.takes_any:
                raise UnknownOptionError(f"{self.name}.{where}", name, self.parameters)

    def split(
        self, where: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: frozenset[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the function, and options of the method that was called.

        Args:
            where: the method, for errors; empty for a call.
            args: by position; they fill the parameters that are not bound.
            kwargs: by name. Where the function has a parameter of an option's name, the function gets it.
            options: names that the method knows.

        Raises:
            UnknownOptionError: a keyword that neither of them knows.
            InvalidArgumentError: an argument is missing, or given twice.
        """
        arguments, chosen = self.given(where, args, kwargs, options)
        for name, parameter in self.parameters.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                raise InvalidArgumentError(name, "nothing", "a value", f"{_place(self.name, where)} needs this argument.")
        return arguments, chosen

    def given(
        self, where: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: frozenset[str] = frozenset()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Like ``split``, where arguments may be missing."""
        place = _place(self.name, where)
        free = [name for name in self.parameters if name not in self.bound]
        if len(args) > len(free):
            raise InvalidArgumentError(place, f"{len(args)} arguments by position", f"at most {len(free)}")
        arguments = {**self.bound, **dict(zip(free, args, strict=False))}
        chosen: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self.parameters:
                if name in free[: len(args)]:
                    raise InvalidArgumentError(name, "a value by position and one by name", "one of them")
                arguments[name] = value
            elif name in options:
                chosen[name] = value
            elif self.takes_any:
                arguments[name] = value
            else:
                raise UnknownOptionError(place, name, {*self.parameters, *options})
        return arguments, chosen


def _place(name: str, where: str) -> str:
    return f"{name}.{where}" if where else name


def _own_parameters(name: str, func: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters behind the state, and whether it takes any keyword."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(func).parameters.values())
    if not parameters or parameters[0].kind not in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
        raise InvalidArgumentError(name, "no first parameter", "the state as first parameter", f"Write def {name}(s, ...).")
    own = parameters[1:]
    for parameter in own:
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.VAR_POSITIONAL):
            raise InvalidArgumentError(
                name, f"parameter {parameter}", "parameters that can be given by name", "Take a list instead of *args."
            )
    named = {parameter.name: parameter for parameter in own if parameter.kind is not kinds.VAR_KEYWORD}
    return named, len(named) < len(own)

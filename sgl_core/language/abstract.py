"""Values that a program does not have yet while it is traced: they can be appended as text, and are loud about all else.

``tracer`` and ``traced_state`` make them, program bodies get them. Whatever would need the value itself (a branch, a length,
a format, an attribute) raises a ``TraceError`` with the author's line and the cure. The first refusal of a trace is kept by
its ``Refusals``, so that a body that catches it does not hide it.

No public attribute: a value must not seem to have one. The functions of this module read what it holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn, TypeGuard

from sgl_core.errors import TraceError
from sgl_core.language.graph import Place
from sgl_core.language.ir import Argument, ArgumentValue, ConstantText, Expr, ExprList, Value, Variable, as_nodes
from sgl_core.language.places import is_user_code, user_place

__all__ = [
    "Abstract",
    "AbstractList",
    "AbstractText",
    "AbstractValue",
    "Origin",
    "Refusals",
    "entries_of",
    "is_handed_to_c_code",
    "is_list",
    "is_text",
    "is_value",
    "origin_of",
    "parts_of",
    "source_of",
]


class Refusals:
    """What a trace has refused.

    Args:
        program: name of the traced function, for cures.
        on_first: called before the first refusal is raised.
    """

    def __init__(self, program: str, on_first: Callable[[], None]) -> None:
        """Nothing is refused yet."""
        self.program = program
        self.first: TraceError | None = None
        self._on_first = on_first

    def refuse(self, what: str, cure: str, *, argument: str | None = None, place: Place | None = None) -> TraceError:
        """The error for it, to be raised.

        Args:
            what: what the program does.
            cure: what to write instead.
            argument: the argument whose value is needed, if it is one.
            place: where; None is the author's line that runs now.
        """
        at = place or user_place()
        error = TraceError(what, cure, place="" if at is None else str(at), argument=argument)
        if self.first is None:
            self.first = error
            self._on_first()
        return error

    def static_cure(self, argument: str) -> str:
        """How to fix an argument."""
        return f'{self.program}.compile(static={{"{argument}": ...}})'


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from.

    Args:
        source: what the graph calls it.
        described: in words: "variable 'x'".
        shown: an expression for it: ``s["x"]``.
        refusals: of its trace.
        is_number: it will be a number or bool, so adding to it appends no text.
    """

    source: Value
    described: str
    shown: str
    refusals: Refusals
    is_number: bool = False

    @property
    def argument(self) -> str | None:
        """The argument that it is, if it is one."""
        return self.source.name if isinstance(self.source, ArgumentValue) else None


class _Use(NamedTuple):
    """What is done with a value, in words, and which kind of cure that has."""

    what: str
    kind: str


_TYPE: Final = _Use("is asked for its type (isinstance, match)", "branch")
_COMPUTED: Final = _Use("is computed with", "compute")
_USES: Final = {
    _Use("is asked whether it is true (if, while, and, or, not)", "branch"): ("bool",),
    _Use("is compared", "branch"): ("eq", "ne", "lt", "le", "gt", "ge"),
    _Use("is searched (in)", "branch"): ("contains",),
    _Use("is hashed (a member of a set, a key of a dict)", "branch"): ("hash",),
    _Use("is asked for its length", "shape"): ("len", "length_hint"),
    _Use("is iterated over", "walk"): ("iter", "next", "reversed"),
    _Use("is indexed", "compute"): ("getitem",),
    _Use("is changed", "compute"): ("setitem", "delitem", "setattr", "delattr"),
    _Use("is formatted (f-string, str, %, print)", "format"): ("str", "repr", "format", "bytes"),
    _Use("is converted to a number", "shape"): (*("int", "float", "complex", "index", "round", "trunc", "floor", "ceil"),),
    _Use("is used as a path", "compute"): ("fspath",),
    _Use("is pickled", "compute"): ("reduce", "reduce_ex"),
    _COMPUTED: (
        *("sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor", "or"),
        *("rsub", "rmul", "rmatmul", "rtruediv", "rfloordiv", "rmod", "rdivmod", "rpow", "rlshift", "rrshift"),
        *("rand", "rxor", "ror", "neg", "pos", "abs", "invert"),
    ),
}


class Abstract(Expr):
    """What all of them share: every use that needs the value is refused. Never format one, and test for ``Expr`` first."""

    __slots__ = ("_sgl_origin",)

    _sgl_origin: Origin

    def __init__(self, origin: Origin) -> None:
        """Made in a trace only."""
        object.__setattr__(self, "_sgl_origin", origin)

    def __getattribute__(self, name: str) -> Any:
        """Refuse attributes; a dunder that it lacks is an AttributeError, so that copy and inspect may ask."""
        if name == "__class__":
            raise _refused(self, _TYPE)
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        if name == "nodes" and not is_user_code(sys._getframe(1)):
            return object.__getattribute__(self, name)
        raise _refused_attribute(self, name)

    def __add__(self, other: Any) -> ExprList | AbstractText:  # type: ignore[override]  # refuses what is no text
        """This, then ``other``."""
        return _sum(self, other, self)

    def __radd__(self, other: Any) -> ExprList | AbstractText:  # type: ignore[override]
        """``other``, then this."""
        return _sum(other, self, self)

    def __copy__(self) -> Abstract:
        return self

    def __deepcopy__(self, memo: Any) -> Abstract:
        return self


class AbstractValue(Abstract):
    """One value: an argument, a variable, what a host function returns, or what a fork contributed to a join."""

    __slots__ = ()

    def nodes(self) -> tuple[Expr, ...]:
        """Its text."""
        source = source_of(self)
        return (Argument(source.name) if isinstance(source, ArgumentValue) else Variable(source),)


class AbstractText(Abstract):
    """Text and values, one after the other: what ``+`` makes of them. ``origin`` is that of the first value."""

    __slots__ = ("_sgl_parts",)

    _sgl_parts: tuple[str | AbstractValue, ...]

    def __init__(self, parts: tuple[str | AbstractValue, ...], origin: Origin) -> None:
        """At least two parts, one of them a value."""
        super().__init__(origin)
        object.__setattr__(self, "_sgl_parts", parts)

    def nodes(self) -> tuple[Expr, ...]:
        """The parts' text."""
        return tuple(
            node for part in parts_of(self) for node in (part.nodes() if isinstance(part, Expr) else (ConstantText(part),))
        )


class AbstractList(Abstract):
    """What a join gathered: its length is known, its entries are values or None. It can be walked and indexed."""

    __slots__ = ("_sgl_entries",)

    _sgl_entries: tuple[Any, ...]

    def __init__(self, entries: Sequence[Any], origin: Origin) -> None:
        """One entry for each fork."""
        super().__init__(origin)
        object.__setattr__(self, "_sgl_entries", tuple(entries))

    def nodes(self) -> tuple[Expr, ...]:
        """Refuse: a list is no text."""
        raise _refused_use(self, _Use("is appended as text", "compute"))

    def __len__(self) -> int:
        """How many forks."""
        return len(entries_of(self))

    def __bool__(self) -> bool:
        return bool(entries_of(self))

    def __iter__(self) -> Iterator[Any]:
        """The entries, in order of the forks."""
        return iter(entries_of(self))

    def __reversed__(self) -> Iterator[Any]:
        """The entries, last first."""
        return iter(entries_of(self)[::-1])

    def __getitem__(self, index: int | slice) -> Any:
        """An entry, or a list of some."""
        entries = entries_of(self)
        if isinstance(index, slice):
            return AbstractList(entries[index], origin_of(self))
        try:
            return entries[index]
        except IndexError:
            raise IndexError("list index out of range") from None


# ---- what they are: ``isinstance`` with anything but ``Expr`` and ``Abstract`` is refused ----------------------------
def is_value(thing: object) -> TypeGuard[AbstractValue]:
    """Whether it is one value."""
    return issubclass(type(thing), AbstractValue)


def is_text(thing: object) -> TypeGuard[AbstractText]:
    """Whether it is text that was added up."""
    return issubclass(type(thing), AbstractText)


def is_list(thing: object) -> TypeGuard[AbstractList]:
    """Whether it is what a join gathered."""
    return issubclass(type(thing), AbstractList)


# ---- what they hold --------------------------------------------------------------------------------------------------
def origin_of(value: Abstract) -> Origin:
    """Where it comes from."""
    origin: Origin = object.__getattribute__(value, "_sgl_origin")
    return origin


def source_of(value: AbstractValue) -> Value:
    """What the graph calls it."""
    return origin_of(value).source


def parts_of(text: AbstractText) -> tuple[str | AbstractValue, ...]:
    """The parts in order."""
    parts: tuple[str | AbstractValue, ...] = object.__getattribute__(text, "_sgl_parts")
    return parts


def entries_of(values: AbstractList) -> tuple[Any, ...]:
    """The entries in order."""
    entries: tuple[Any, ...] = object.__getattribute__(values, "_sgl_entries")
    return entries


def is_handed_to_c_code(error: BaseException) -> bool:
    """Whether this is what C code says that was given a value where it needs a str, a number or the like."""
    names = (AbstractValue.__name__, AbstractText.__name__, AbstractList.__name__)
    return type(error) is TypeError and any(name in str(error) for name in names)


# ---- adding ----------------------------------------------------------------------------------------------------------
def _sum(left: Any, right: Any, value: Abstract) -> ExprList | AbstractText:
    """Two operands of ``+``, at least one of them ``value``."""
    parts: list[str | AbstractValue] = []
    has_nodes = False
    for operand in (left, right):
        if is_text(operand):
            parts += parts_of(operand)
        elif is_value(operand) and not origin_of(operand).is_number:
            parts.append(operand)
        elif isinstance(operand, Abstract):
            raise _refused(operand, _COMPUTED)
        elif isinstance(operand, Expr):
            has_nodes = True
        elif isinstance(operand, str):
            parts.append(operand)
        else:
            raise _refused(value, _COMPUTED)
    if has_nodes:
        return ExprList(as_nodes(left, "+") + as_nodes(right, "+"))
    return AbstractText(tuple(parts), origin_of(value))


# ---- refusing --------------------------------------------------------------------------------------------------------
def _refused(value: Abstract, use: _Use) -> TraceError:
    """The error for a use that needs the value."""
    option = _option_given(value)
    return _refused_use(value, use) if option is None else _refused_option(origin_of(value), *option)


def _refused_attribute(value: Abstract, name: str) -> TraceError:
    """The error for an attribute or method."""
    fn = f"str.{name}" if hasattr(str, name) else f"lambda value: value.{name}"
    return _refused_use(value, _Use(f"is asked for .{name}", "attribute"), fn)


def _refused_use(value: Abstract, use: _Use, fn: str = "fn") -> TraceError:
    """The error where the author's own line uses the value."""
    origin = origin_of(value)
    if is_list(value):
        what = f"{origin.described}, a list of values to come, {use.what}"
        cure = f'Walk it, as it has an entry for each fork; or use host code: sgl.call("\\n".join, {origin.shown}).'
    else:
        what = f"{origin.described} {use.what} before it has a value"
        cure = _argument_cure(origin, use, fn) if origin.argument is not None else _variable_cure(origin, use, fn)
    return origin.refusals.refuse(what, cure, argument=origin.argument)


def _argument_cure(origin: Origin, use: _Use, fn: str) -> str:
    others = {
        "format": f'; or write text + value: "text " + {origin.shown} instead of an f-string',
        "attribute": f"; or use host code: sgl.call({fn}, {origin.shown})",
        "compute": f"; or use host code: sgl.call({fn}, {origin.shown})",
        "walk": f'; or, to append all of it as one text, use host code: sgl.call("\\n".join, {origin.shown})',
    }
    return f"Fix the argument: {origin.refusals.static_cure(origin.shown)}{others.get(use.kind, '')}."


def _variable_cure(origin: Origin, use: _Use, fn: str) -> str:
    call = f"sgl.call({fn}, {origin.shown})"
    if use.kind == "format":
        return f'Write text + value: "text " + {origin.shown} instead of an f-string; or use host code: {call}.'
    if use.kind == "attribute":
        return f"Use host code: {call}."
    return (
        f"Use host code: {call}. Where the program itself branches on what the model said, compile it with fallback=True, "
        "or run it interpreted."
    )


def _refused_option(origin: Origin, function: str, option: str) -> TraceError:
    what = f"{origin.described} is given to {function}(...) as {option}, which must be known when the program is compiled"
    return origin.refusals.refuse(what, option_cure(origin), argument=origin.argument)


def option_cure(origin: Origin) -> str:
    """What to do about a value where a constant is needed."""
    if origin.argument is not None:
        return f"Fix the argument: {origin.refusals.static_cure(origin.argument)}."
    return "Arguments can be fixed with compile(static=...); for a variable compile with fallback=True, or run it interpreted."


def _option_given(value: Abstract) -> tuple[str, str] | None:
    """The primitive that the author called with this value, and as what; None where the author's own line uses it.

    The primitives check their options one by one, and the check is what meets the value: the outermost frame of ours is
    the primitive, and its locals say which option it is.
    """
    outermost = None
    frame = sys._getframe(2)
    while frame is not None and not is_user_code(frame):
        if frame.f_globals.get("__name__", "").startswith("sgl_core.language") and frame.f_globals is not globals():
            outermost = frame
        frame = frame.f_back  # type: ignore[assignment]
    if outermost is None:
        return None
    for name, given in outermost.f_locals.items():
        for option, held in given.items() if type(given) is dict else ((name, given),):
            if _holds(held, value):
                return outermost.f_code.co_name, str(option)
    return None


def _holds(given: object, value: Abstract) -> bool:
    if given is value:
        return True
    if type(given) in (list, tuple, set):
        return any(item is value for item in given)  # type: ignore[attr-defined]
    return type(given) is dict and any(item is value for item in given.values())


def _refusing(use: _Use) -> Callable[..., NoReturn]:
    def method(self: Abstract, *_: Any, **__: Any) -> NoReturn:
        raise _refused(self, use)

    return method


for _use, _names in _USES.items():
    for _name in _names:
        setattr(Abstract, f"__{_name}__", _refusing(_use))

Sequence.register(AbstractValue)  # so that ``match value: case [a, b]`` asks for its length instead of passing it over
Sequence.register(AbstractText)

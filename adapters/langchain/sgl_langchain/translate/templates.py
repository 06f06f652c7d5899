"""One template string as segments, in each of LangChain's three formats. Pure; called by ``prompts``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, Final

__all__ = ["Const", "Hole", "Opaque", "Segment", "joined", "template_segments"]

_FORMATTER: Final = Formatter()
_NAME: Final = re.compile(r"[^.\[]*")
_JINJA_TAG: Final = re.compile(r"\{[{%#]([-+]?)")
_PLAIN_VALUES: Final = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class Const:
    """Text that is the same at every call."""

    text: str


@dataclass(frozen=True, slots=True)
class Hole:
    """The value of a variable.

    Args:
        variable: its name.
        format: what the template makes of it: attributes, conversion and format specification; empty for plain ``{name}``.
    """

    variable: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Text that nobody knows before the call. ``reason``: why, for people."""

    reason: str


Segment = Const | Hole | Opaque


def template_segments(template: str, template_format: str, partials: Mapping[str, Any]) -> tuple[Segment, ...]:
    """The segments of a template.

    Args:
        template: the text.
        template_format: "f-string", "mustache" or "jinja2".
        partials: values of some variables; one that is a function is computed at every call.
    """
    if template_format == "f-string":
        return joined(_f_string(template, partials))
    text, has_more = _mustache(template) if template_format == "mustache" else _jinja2(template)
    rest = Opaque(f"a {template_format} template is known up to its first tag")
    return joined((Const(text), rest) if has_more else (Const(text),))


def joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """The same with neighbouring constants as one, and without empty ones."""
    result: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Const):
            if not segment.text:
                continue
            last = result[-1] if result else None
            if isinstance(last, Const):
                result[-1] = Const(last.text + segment.text)
                continue
        result.append(segment)
    return tuple(result)


def _f_string(template: str, partials: Mapping[str, Any]) -> Iterable[Segment]:
    """Escaped braces arrive from the parser as constants of their own."""
    try:
        fields = list(_FORMATTER.parse(template))
    except ValueError:
        return (Opaque("a template that cannot be parsed"),)
    segments: list[Segment] = []
    for text, field, spec, conversion in fields:
        segments.append(Const(text))
        if field is not None:
            segments.append(_field(field, spec or "", conversion or "", partials))
    return segments


def _field(field: str, spec: str, conversion: str, partials: Mapping[str, Any]) -> Segment:
    match = _NAME.match(field)
    name = match.group() if match else field
    path = field[len(name) :] + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
    if name not in partials:
        return Hole(name, path)
    value = partials[name]
    if callable(value):
        return Opaque(f"{{{name}}} is computed at every call")
    if path or not isinstance(value, _PLAIN_VALUES):
        return Opaque(f"{{{name}}} is formatted at every call")
    return Const(format(value))


def _mustache(template: str) -> tuple[str, bool]:
    """Text before the first tag; a tag that stands alone on its line takes the white space before it along."""
    head, tag, _ = template.partition("{{")
    lines, line_end, line = head.rpartition("\n")
    return (lines + line_end, True) if tag and not line.strip() else (head, bool(tag))


def _jinja2(template: str) -> tuple[str, bool]:
    """Text before the first tag. Jinja unifies line ends, and drops one at the very end of a template."""
    match = _JINJA_TAG.search(template)
    head = template if match is None else template[: match.start()]
    if "\r" in head:
        return head.partition("\r")[0], True
    if match is None:
        return head.removesuffix("\n"), False
    return (head.rstrip() if match.group(1) == "-" else head), True

"""Types with few values, and how each value is written so that DSPy reads the same one back. Called by ``fields``.

DSPy's reader is the judge: a spelling counts if ``parse_value`` makes the very member of it, and is left out if not.
"""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from dspy.adapters.chat_adapter import field_header_pattern
from dspy.adapters.utils import parse_value

__all__ = ["members_of", "spellings"]

_MOST: Final = 1000


def members_of(annotation: Any) -> tuple[Any, ...] | None:
    """All values of a Literal, an Enum, bool, None or a union of such; None of a type that has others, or more than 1,000."""
    members = _members(annotation)
    return members if members and len(members) <= _MOST else None


def spellings(annotation: Any, *, is_json: bool) -> tuple[str, ...] | None:
    """A text for each member of ``annotation``, or None if one has none, or if there are too many members.

    Args:
        annotation: as in the signature.
        is_json: the texts are JSON values; else they stand under a header of the chat format.
    """
    members = members_of(annotation)
    if members is None:
        return None
    texts: dict[str, None] = {}
    for member in members:
        text = next((text for text in _candidates(member, is_json) if _reads_back(text, member, annotation, is_json)), None)
        if text is None:
            return None
        texts[text] = None
    return tuple(texts)


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin is Literal:
        return get_args(annotation)
    if origin in (Union, types.UnionType):
        parts = [_members(part) for part in get_args(annotation)]
        return tuple(member for part in parts for member in part) if all(parts) else ()
    if isinstance(annotation, enum.EnumMeta):
        return tuple(annotation)
    if annotation is bool:
        return (True, False)
    return (None,) if annotation in (None, type(None)) else ()


def _candidates(member: Any, is_json: bool) -> Iterator[str]:
    """Spellings to try, the one that DSPy's own adapters would write first."""
    values = [member.value, member.name] if isinstance(member, enum.Enum) else [member]
    for value in values:
        if is_json:
            try:
                yield json.dumps(value, ensure_ascii=False)
            except (TypeError, ValueError):
                continue
        elif isinstance(value, str):
            yield from (value, f'"{value}"', f"'{value}'")
        else:
            yield from (str(value), repr(value))


def _reads_back(text: str, member: Any, annotation: Any, is_json: bool) -> bool:
    section: Any = text
    try:
        if is_json:
            section = json.loads(text)
        elif not text or text != _as_section(text):
            return False
        read = parse_value(section, annotation)
        return type(read) is type(member) and bool(read == member)
    except Exception:  # the reader's, and any of them says that it is not read
        return False


def _as_section(text: str) -> str | None:
    """What DSPy's chat format makes of a text under a header; None if it would take a line of it for another header."""
    lines = text.splitlines()
    if any(field_header_pattern.match(line.strip()) for line in lines):
        return None
    return "\n".join(lines).strip()

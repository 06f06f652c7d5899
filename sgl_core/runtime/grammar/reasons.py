"""Why a constraint was refused, in our own words.

The engine's messages quote the constraint, and sometimes what was generated. So none of their text goes on: a phrase that one
of them is known to hold picks a sentence of ours, and a line number is all that is copied.
"""

from __future__ import annotations

import re

__all__ = ["reason_of"]

_REASONS = (
    ("retrieving it failed", "a $ref points outside the schema, and nothing is ever fetched"),
    ("does not exist", "a $ref points to a definition that is not there"),
    ("look-around", "look-around is not supported"),
    ("lookarounds not supported", "look-around is not supported, nor are ^ and $ except at the ends, nor \\b"),
    ("backreferences are not supported", "back-references are not supported"),
    ("unclosed character class", "a character class is not closed"),
    ("unclosed counted repetition", "a counted repetition is not closed"),
    ("unclosed group", "a group is not closed"),
    ("unopened group", "a group is closed that was not opened"),
    ("invalid repetition count range", "a counted repetition ends below its start"),
    ("repetition quantifier expects a valid decimal", "a counted repetition holds no number"),
    ("repetition operator missing expression", "a repetition has nothing to repeat"),
    ("invalid character class range", "a range of characters ends below its start"),
    ("unrecognized escape sequence", "an escape is not known"),
    ("unrecognized flag", "a flag of a group is not known"),
    ("unicode property not found", "a class of Unicode characters is not known"),
    ("incomplete escape sequence", "it ends inside an escape"),
    ("hexadecimal", "a hexadecimal escape is malformed"),
    ("regex parse error", "a regular expression is malformed"),
    ("invalid regex", "a regular expression cannot be used"),
    ("oneof constraints are not supported", "alternatives of a oneOf overlap; use anyOf"),
    ("are not disjoint", "patternProperties overlap"),
    ("unsatisfiable schema", "no value satisfies it"),
    ("unable to determine if regex is empty", "whether some string satisfies it is too hard to tell"),
    ("unknown format", "a string format is not known"),
    ("invalid type", "a type is not one of JSON's"),
    ("too many digits", "a multipleOf has too many digits"),
    ("failed to generate regex for", "bounds of a number cannot be used"),
    ("schema too large", "it grows too large when it is compiled"),
    ("recursion limit exceeded", "it is nested too deeply"),
    ("too many expressions", "it grows too large for the automaton"),
    ("too many states", "it grows too large for the automaton"),
    ("configuration (grammar) too big", "it grows too large for the automaton"),
    ("precomputation failed", "it grows too large for the automaton"),
    ("fuel", "it grows too large for the automaton"),
    ("grammar size", "it grows too large for the parser"),
    ("grammar too big", "it grows too large for the parser"),
    ("too many items", "it is too ambiguous to parse"),
    ("current row has", "it is too ambiguous to parse"),
    ("noextensionbias", "no text satisfies it"),
    ("unknown grammar", "it refers to another grammar, and there is none"),
    ("unknown common", "it imports a terminal that is not known"),
    ("unknown name", "it uses a name that it does not define"),
    ("no start rule", "it has no rule named start"),
    ("unknown special token", "it names a control token that the model does not have"),
    ("circular reference", "a terminal is defined by itself"),
    ("duplicate", "a name is defined twice"),
    ("lexer error", "a character is not expected"),
    ("expected", "something is not expected"),
)
_KEYWORDS = (
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef", "contentSchema", "dependencies",
)  # fmt: skip
_LINE = re.compile(r"(?:at )?(\d{1,6})\(\d{1,6}\)")


def reason_of(native: str, *, by_line: bool = False) -> str:
    """Our sentence for an error of the engine, without full stop.

    Args:
        native: its text.
        by_line: whether a line of it is a line of the caller's.
    """
    head = native[:2000]
    if "Unimplemented keys" in head:
        keys = [f"{key}" for key in _KEYWORDS if f'"{key}"' in head]
        return f"it uses {' and '.join(keys) or 'a keyword'} of JSON Schema, which is not supported"
    lowered = head.lower()
    reason = next((ours for phrase, ours in _REASONS if phrase in lowered), "it cannot be compiled")
    line = _LINE.match(head) if by_line else None
    return f"{reason} (line {line[1]})" if line else reason

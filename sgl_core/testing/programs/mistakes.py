"""What authors do wrong: mistakes that are errors in any program, and looks at values that only a running program has."""

from __future__ import annotations

from typing import Final

from sgl_core.testing.programs.expressions import ExpressionWriter
from sgl_core.testing.programs.facts import Holds, StreamFacts
from sgl_core.testing.programs.tree import Statement

__all__ = ["branch", "mistake"]

_MISTAKES: Final = (
    ('s += "so " + s["never_set"]',),
    ('s["never_set"]',),
    ("s.user_begin()", 's += sgl.user("inside")'),
    ("with s.assistant():", 's += sgl.system("inside")'),
    ("s.system_end()",),
    ("late = s.fork(2)", 'late += "t" + sgl.gen("a")', "late.join()", 'late[0] += "too late"'),
    ("late = s.fork(2)", "late.join()", 'late[1]["a"] = 1'),
    ("late = s.fork(3)", 'late += ["one", "two"]'),
    ("s.fork(0)",),
    ('s.fork(2).join("concatenate")',),
    ('s.fork(2).join(errors="ignore")',),
    ("s += 3",),
    ("s += None",),
    ("s.user(3)",),
    ('s += sgl.select("a", [])',),
    ("s += sgl.gen(temperature=-1)",),
    ("s += sgl.gen(heat=1)",),
    ("with s.copy() as left:", 'left += "x"', "+left += 'too late'"),
    ("sgl.raw(3)",),
    ('raise ValueError("the author gives up")',),
    ("{}['missing']",),
)
"""Statements; those behind one that opens a block are in it, unless a plus stands before them."""

_LOOKS: Final = (
    'if {0} == "ka":',
    'if {0} != "ka":',
    "if {0}:",
    "if not {0}:",
    'if "a" in {0}:',
    "if len({0}) > 9:",
    'if {0} < "m":',
    "if isinstance({0}, str):",
    'if {0} in ("yes", "no"):',
    'if {0}.startswith("k"):',
    "if int({0}) > 1:",
    'if max({0}, "m") == "m":',
    'if {0} in {{"yes": 1}}:',
    "for item in {0}:",
    's += f"it is {{{0}}}"',
    "s += str({0})",
    "s += {0}.upper()",
    "s += {0}[0]",
    's += "it is {{}}".format({0})',
    "s += repr({0})",
)
"""Each needs the value ``{0}``."""


def mistake(writer: ExpressionWriter, root: StreamFacts) -> list[Statement]:
    """A mistake in the root stream."""
    lines = writer.random.choice(_MISTAKES)
    features = frozenset({"author's mistake"})
    if root.open_role is not None:
        begin = Statement(f"s.{root.open_role}_end()")
        root.open_role = None
        return [begin, *_statements(lines, features)]
    return _statements(lines, features)


def _statements(lines: tuple[str, ...], features: frozenset[str]) -> list[Statement]:
    made: list[Statement] = []
    for line in lines:
        if line.startswith("+"):
            made.append(Statement(line[1:], features=features))
        elif made and made[-1].has_block:
            made[-1] = Statement(made[-1].code, (*made[-1].body, Statement(line, features=features)), features)
        else:
            made.append(Statement(line, features=features))
    return made


def branch(writer: ExpressionWriter, root: StreamFacts) -> tuple[Statement, str | None]:
    """A statement that needs a value which is not there before the program runs; and the argument, if it is one's."""
    random = writer.random
    made = [name for name, shape in root.variables.items() if shape.holds is Holds.TEXT and shape.is_made_at_run_time]
    argument = None if made and random.random() < 0.6 else random.choice(("topic", "style"))
    value = argument or f"s['{random.choice(made)}']"
    line = random.choice(_LOOKS).format(value)
    body = (Statement('s += "indeed" + sgl.gen(max_tokens=4)'),) if line.endswith(":") else ()
    return Statement(line, body, frozenset({"data-dependent branch"})), argument

"""Random programs from a seed: 5 to 25 statements of everything that the language has, small enough to run by the thousand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from sgl_core.testing.programs.expressions import Draft, ExpressionWriter, joined
from sgl_core.testing.programs.facts import TEXT, Holds, Shape, StreamFacts, gathered
from sgl_core.testing.programs.mistakes import branch, mistake
from sgl_core.testing.programs.tree import Function, Kind, Program, Statement, World

__all__ = ["FEATURES", "generate"]

FEATURES: Final = (
    "argument",
    "commutative",
    "copy",
    "equal gens in forks",
    "explicit seed",
    "fork",
    "fork in fork",
    "function appended",
    "function as a stream",
    "gen reads a variable",
    "item of a joined list",
    "join appends",
    "join gathers",
    "join keeps errors",
    "loop",
    "number",
    "optional argument",
    "parent goes on",
    "raw",
    "reads another stream",
    "returns",
    "role",
    "role as a block",
    "role begins and ends",
    "role open across a fork",
    "select",
    "separate reasoning",
    "set_var",
    "sgl.call",
    "stop",
    "stream nobody joins",
    "temperature 0",
    "temperature 1",
    "text behind a gen",
    "unnamed gen",
    "var_scope",
)
"""What programs exercise, by the names that statements are tagged with."""

_PARAMETERS: Final = ("topic", 'style="plain"')
_OPTIONAL: Final = ("note=None", "is_short=False")
_TOPICS: Final = ("cats", "the sea", "a b", "Zürich", "two words ")
_MOST_DEPTH: Final = 2


def generate(seed: int, kind: Kind | None = None) -> Program:
    """The program of a seed.

    Args:
        seed: the same seed gives the same program everywhere.
        kind: what to expect of it; None: three in four are legal, the others share the rest.
    """
    random = Random(seed)  # noqa: S311 - not for secrets
    drawn = random.choices((Kind.LEGAL, Kind.MISTAKEN, Kind.BRANCHING), (6, 1, 1))[0]
    kind = kind or drawn
    has_failures = kind is Kind.LEGAL and random.random() < 0.5
    helpers: list[_Helper] = []
    for index in range(random.randint(0, 2)):
        helpers.append(_FunctionWriter(random, f"helper_{index}", has_failures=has_failures, helpers=helpers).helper())
    writer = _FunctionWriter(random, "main", has_failures=has_failures, helpers=helpers)
    main = writer.main(kind)
    return Program(
        seed=seed,
        kind=kind,
        functions=(*(helper.function for helper in helpers), main),
        argument_sets=tuple(_arguments(random, has_optional=writer.has_optional) for _ in range(random.choice((1, 1, 1, 2)))),
        options=_options(random),
        world=World(random.choice((0, 6, 15)), random.choice((0, 4))) if has_failures else World(),
        may_fail=has_failures,
        looks_at=writer.looks_at,
    )


def _arguments(random: Random, *, has_optional: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"topic": random.choice(_TOPICS)}
    if random.random() < 0.4:
        arguments["style"] = random.choice(("terse", " florid"))
    if has_optional and random.random() < 0.6:
        arguments["note"] = random.choice((None, "mind the gap"))
    if has_optional and random.random() < 0.6:
        arguments["is_short"] = random.random() < 0.5
    return arguments


def _options(random: Random) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": random.randint(0, 99)}
    if random.random() < 0.2:
        options["temperature"] = random.choice((0, 0.7))
    if random.random() < 0.2:
        options["max_new_tokens"] = random.choice((5, 40))
    return options


class _Helper:
    """A function that others may call: its source, and what it does to the stream it is given."""

    def __init__(self, function: Function, facts: StreamFacts, returned: Shape | None) -> None:
        self.function = function
        self.facts = facts
        self.returned = returned


class _FunctionWriter(ExpressionWriter):
    """Writes one function."""

    def __init__(self, random: Random, name: str, *, has_failures: bool, helpers: Sequence[_Helper]) -> None:
        super().__init__(random, has_failures=has_failures)
        self.name = name
        self.helpers = tuple(helpers)
        self.looks_at: str | None = None
        self.has_optional = False
        self.left = random.randint(3, 7) if name == "main" else random.randint(1, 3)
        self._num_names = 0
        self._depth = 0
        self.root = StreamFacts("s")
        self.streams.append(self.root)

    # ---- whole functions ---------------------------------------------------------------------------------------------
    def main(self, kind: Kind) -> Function:
        """The program's own function."""
        self.locals = {"topic": TEXT, "style": TEXT}
        body = [self._opening()]
        while self.left > 0:
            body += self._statements(self._some_stream())
        if kind is Kind.MISTAKEN:
            body += mistake(self, self.root)
        elif kind is Kind.BRANCHING:
            statement, self.looks_at = branch(self, self.root)
            body.append(statement)
        if self.random.random() < 0.4:
            body.append(self._return())
        return Function("main", _PARAMETERS + _OPTIONAL * self.has_optional, tuple(body))

    def helper(self) -> _Helper:
        """A function for others to call, inline or as a stream of its own."""
        self.locals = {"tip": Shape(Holds.TEXT)}
        body = [self._append(self.root, joined([self.constant(), self.gen()]))]
        while self.left > 0:
            body += self._statements(self.root)
        returned = None
        if self.random.random() < 0.4:
            value, returned = self.value()
            body.append(Statement(f"return {value.code}", features=frozenset({"returns"})))
        return _Helper(Function(self.name, ("tip",), tuple(body)), self.root, returned)

    def _opening(self) -> Statement:
        draft = joined([self.constant(), Draft("topic", {"argument"}, uses_values=True)])
        if self.random.random() < 0.5:
            draft = Draft(f"sgl.user({draft.code})", {"role", *draft.features}, uses_values=True)
        return self._append(self.root, draft)

    def _return(self) -> Statement:
        values = [self.value()[0].code for _ in range(self.random.randint(1, 2))]
        values.append(self.random.choice(self.streams).code)
        shape = self.random.choice(("({0},)", "[{0}]", "{{'it': ({0},)}}"))
        return Statement("return " + shape.format(", ".join(values)), features=frozenset({"returns"}))

    # ---- statements --------------------------------------------------------------------------------------------------
    def _statements(self, stream: StreamFacts) -> list[Statement]:
        """One or a few that belong together, for ``stream``."""
        self.left -= 1
        free = stream.open_role is None
        deep = self._depth < _MOST_DEPTH
        makers: list[tuple[float, Callable[[StreamFacts], list[Statement]]]] = [
            (5.0, self._text_statement),
            (3.0 * free, self._turns_statement),
            (1.2 * free, self._turn_call),
            (1.5 * free, self._begin_turn),
            (4.0 * (not free and not stream.is_held), self._end_turn),
            (1.5 * (free and deep), self._turn_block),
            (2.0 * deep, self._scope),
            ((12.0 if self._depth else 4.0) * deep, self._fork),
            (1.5 * deep, self._copy),
            (1.5, self._set_var),
            (1.5, self._local),
            (1.2, self._loop),
            (1.2, self._optional),
            (3.0 * (free and bool(self.helpers)), self._call_inline),
            (3.0 * bool(self.helpers), self._call_stream),
        ]
        (_, maker) = self.random.choices(makers, [weight for weight, _ in makers])[0]
        return maker(stream)

    def _block(self, stream: StreamFacts, most: int = 2) -> tuple[Statement, ...]:
        self._depth += 1
        body: list[Statement] = []
        for _ in range(self.random.randint(1, most)):
            body += self._statements(stream)
        self._depth -= 1
        return tuple(body)

    def _some_stream(self) -> StreamFacts:
        writable = [stream for stream in self.streams if stream.is_writable and stream is not self.root]
        return self.random.choice(writable) if writable and self.random.random() < 0.25 else self.root

    def _new_name(self, prefix: str) -> str:
        self._num_names += 1
        return f"{prefix}{self._num_names}"

    def _append(self, stream: StreamFacts, draft: Draft, code: str | None = None) -> Statement:
        features = set(draft.features)
        if stream.reads_values and "gen" in features:
            features.add("gen reads a variable")
        stream.reads_values |= draft.uses_values
        for name, shape in draft.defines.items():
            stream.define(name, shape)
        return Statement(code or f"{stream.code} += {draft.code}", features=frozenset(features))

    def _text_statement(self, stream: StreamFacts) -> list[Statement]:
        if self.has_failures and self.random.random() < 0.05:  # what turns out to be no text is refused then
            return [self._append(stream, self.uncertain_value())]
        if self.has_failures and self.random.random() < 0.04:
            return [self._append(stream, Draft("sgl.gen(max_tokens=9000)", {"gen", "context too long"}))]
        return [self._append(stream, self.text())]

    def _turns_statement(self, stream: StreamFacts) -> list[Statement]:
        return [self._append(stream, self.turns())]

    def _turn_call(self, stream: StreamFacts) -> list[Statement]:
        role, draft = self.random.choice(("user", "assistant")), self.text(2)
        draft.features.add("role")
        return [self._append(stream, draft, f"{stream.code}.{role}({draft.code})")]

    def _begin_turn(self, stream: StreamFacts) -> list[Statement]:
        stream.open_role = role = self.random.choice(("user", "assistant", "system"))
        code = self.random.choice(
            (f"{stream.code}.{role}_begin()", f"{stream.code} += sgl.{role}_begin() + {self.constant().code}")
        )
        begin = Statement(code, features=frozenset({"role", "role begins and ends"}))
        return [begin, *self._statements(stream)] if self.random.random() < 0.5 else [begin]

    def _end_turn(self, stream: StreamFacts) -> list[Statement]:
        role, stream.open_role = stream.open_role, None
        code = self.random.choice((f"{stream.code}.{role}_end()", f"{stream.code} += sgl.{role}_end()"))
        return [Statement(code, features=frozenset({"role", "role begins and ends"}))]

    def _turn_block(self, stream: StreamFacts) -> list[Statement]:
        role = self.random.choice(("user", "assistant", "system"))
        stream.open_role, stream.is_held = role, True
        body = self._block(stream)
        stream.open_role, stream.is_held = None, False
        return [Statement(f"with {stream.code}.{role}():", body, frozenset({"role", "role as a block"}))]

    def _scope(self, stream: StreamFacts) -> list[Statement]:
        name = self.random.choice(("scope", "a", "plan"))
        body = self._block(stream)
        stream.define(name, TEXT)
        return [Statement(f'with {stream.code}.var_scope("{name}"):', body, frozenset({"var_scope"}))]

    def _set_var(self, stream: StreamFacts) -> list[Statement]:
        name = self.random.choice(("a", "b", "kept"))
        draft, shape = self.value()
        if self.random.random() < 0.3:
            draft, shape = Draft(str(self.random.randint(0, 9))), Shape(Holds.NUMBER)
        stream.define(name, shape)
        code = f'{stream.code}["{name}"] = {draft.code}'
        if self.random.random() < 0.3:
            code = f'{stream.code}.set_var("{name}", {draft.code})'
        return [Statement(code, features=frozenset({"set_var", *draft.features}))]

    def _local(self, stream: StreamFacts) -> list[Statement]:
        """Read something here that is used later, or never."""
        name = self._new_name("x")
        draft, shape = self.value() if self.random.random() < 0.6 else (self.host_call(), TEXT)
        self.locals[name] = shape
        reading = Statement(f"{name} = {draft.code}", features=frozenset(draft.features))
        return [reading, *self._text_statement(stream)] if self.random.random() < 0.5 else [reading]

    def _loop(self, stream: StreamFacts) -> list[Statement]:
        lists = [(code, shape) for code, shape, _ in self.readable() if shape.holds is Holds.LIST]
        texts = [code for code, shape in lists if all(item.holds is Holds.TEXT for item in shape.items)]
        if texts and self.random.random() < 0.6:
            head, part = f"for item in {self.random.choice(texts)}:", Draft("item", uses_values=True)
        elif lists and self.random.random() < 0.5:
            head, part = f"for number in range(len({self.random.choice(lists)[0]})):", Draft('f"{number}) "')
        else:
            head, part = "for number in range(2):", Draft('f"{number}. "')
        body = self._append(stream, joined([part, self.gen() if self.random.random() < 0.5 else self.constant()]))
        return [Statement(head, (body,), frozenset({"loop"}))]

    def _optional(self, stream: StreamFacts) -> list[Statement]:
        """Two ways by an argument that is None, True or False; what they define is the same."""
        if self.name != "main":
            return self._text_statement(stream)
        self.has_optional = True
        if self.random.random() < 0.5:
            tests, part = ("if note is not None:", "if note is None:"), Draft("note", {"argument"}, uses_values=True)
        else:
            tests, part = ("if is_short is True:", "if is_short is not True:"), self.constant()
        features = frozenset({"optional argument"})
        ways = [
            self._append(stream, part),
            self._append(stream, joined([self.constant(), Draft("sgl.gen(max_tokens=5)", {"gen"})])),
        ]
        return [Statement(test, (way,), features) for test, way in zip(tests, ways, strict=True)]

    # ---- streams -----------------------------------------------------------------------------------------------------
    def _fork(self, stream: StreamFacts) -> list[Statement]:
        group, number = self._new_name("forks"), self.random.choice((2, 2, 3, 4))
        features = {"fork"}
        if stream.open_role is not None:
            features.add("role open across a fork")
        if stream.code == "f" or stream.code.endswith("]"):
            features.add("fork in fork")
        children = [stream.child(f"{group}[{index}]") for index in range(number)]
        self.streams += children
        statements = [Statement(f"{group} = {stream.code}.fork({number})", features=frozenset(features))]
        self._depth += 1
        for _ in range(self.random.randint(1, 2)):
            statements += self.random.choice((self._append_to_all, self._for_each, self._for_one))(group, children)
        if self.random.random() < 0.3:
            going_on = self._append(stream, self.text(2))
            statements.append(Statement(going_on.code, features=going_on.features | {"parent goes on"}))
        self._depth -= 1
        if self.random.random() < 0.75:
            statements += self._join(group, stream, children)
        else:
            statements[0] = Statement(statements[0].code, features=frozenset({"stream nobody joins", *features}))
        return statements

    def _append_to_all(self, group: str, children: list[StreamFacts]) -> list[Statement]:
        if self.random.random() < 0.5:
            is_greedy = self.random.random() < 0.6
            draft = joined([self.constant(), self.gen(is_greedy=is_greedy)])
            draft.features.add("equal gens in forks")
            return [self._append_all(children, [draft] * len(children), f"{group} += {draft.code}")]
        name = self.random.choice(("a", "b"))
        drafts = [joined([self.constant(), self.gen(name)]) for _ in children]
        listed = f"[{', '.join(draft.code for draft in drafts)}]"
        code = self.random.choice((f"{group} += {listed}", f"{group} += lambda i: {listed}[i]"))
        return [self._append_all(children, drafts, code)]

    def _append_all(self, children: list[StreamFacts], drafts: list[Draft], code: str) -> Statement:
        made = [self._append(child, draft) for child, draft in zip(children, drafts, strict=True)]
        return Statement(code, features=frozenset().union(*(statement.features for statement in made)))

    def _for_each(self, group: str, children: list[StreamFacts]) -> list[Statement]:
        """The same statements for every fork; only where the forks are still alike, as the names tell."""
        first = children[0]
        if any((child.open_role, child.variables) != (first.open_role, first.variables) for child in children):
            return self._for_one(group, children)
        model = first.same_as("f")
        streams, values = list(self.streams), dict(self.locals)
        self.streams = [stream for stream in streams if stream not in children] + [model]
        numbered = Draft('f"({i}) "')
        body = (self._append(model, joined([numbered, self.text(2)])), *self._block(model, 1))
        self.streams, self.locals = streams, values  # what a round made, the next one replaces
        for child in children:
            learnt = model.same_as(child.code)
            child.open_role, child.reads_values = learnt.open_role, learnt.reads_values
            child.variables, child.defined = learnt.variables, learnt.defined
        return [Statement(f"for i, f in enumerate({group}):", body, frozenset({"fork"}))]

    def _for_one(self, group: str, children: list[StreamFacts]) -> list[Statement]:  # noqa: ARG002 - one of several makers
        return self._statements(self.random.choice(children))

    def _join(self, group: str, parent: StreamFacts, children: list[StreamFacts]) -> list[Statement]:
        for child in children:
            child.is_writable = False
        return [*self._look(children), *self._join_statement(group, parent, children)]

    def _look(self, children: list[StreamFacts]) -> list[Statement]:
        """Read something of a fork and do nothing with it: what matters is only whether it failed."""
        made = [f'{child.code}["{name}"]' for child in children for name in child.defined]
        if not made or self.random.random() < 0.7:
            return []
        return [Statement(self.random.choice(made), features=frozenset({"reads another stream", "reads a value"}))]

    def _join_statement(self, group: str, parent: StreamFacts, children: list[StreamFacts]) -> list[Statement]:
        keeps = self.random.random() < 0.25
        errors = ', errors="keep"' if keeps else ""
        features = {"join keeps errors"} if keeps else set()
        balanced = all(child.open_role == parent.open_role for child in children)
        if balanced and self.random.random() < 0.25:
            return [Statement(f'{group}.join("concate_and_append"{errors})', features=frozenset({"join appends", *features}))]
        for name, shape in gathered(children, keeps_errors=keeps).items():
            parent.define(name, shape)
        mode = 'mode="gather_variable", ' if self.random.random() < 0.2 else ""
        items = [
            f'{parent.code}["{name}"][{index}]'
            for name in parent.defined
            for index, item in enumerate(parent.defined[name].items)
            if item.holds is Holds.TEXT
        ]
        code = f"{group}.join({(mode + errors.removeprefix(', ')).removesuffix(', ')})"
        join = Statement(code, features=frozenset({"join gathers", *features}))
        if not items or self.random.random() < 0.75:
            return [join]
        item = Draft(self.random.choice(items), {"reads a value", "item of a joined list"}, uses_values=True)
        return [join, self._append(parent, joined([item, self.constant()]))]

    def _copy(self, stream: StreamFacts) -> list[Statement]:
        name = self._new_name("copy")
        copied = stream.child(name)
        self.streams.append(copied)
        features = frozenset({"copy"})
        if self.random.random() < 0.5:
            return [Statement(f"{name} = {stream.code}.copy()", features=features), self._append(copied, self.text(2))]
        body = self._block(copied)
        copied.is_writable = False
        return [Statement(f"with {stream.code}.copy() as {name}:", body, features)]

    def _call_inline(self, stream: StreamFacts) -> list[Statement]:
        helper = self.random.choice(self.helpers)
        argument = self.text_value()
        how = self.random.choice(("{0}", "tip={0}")).format(argument.code)
        code = f"{helper.function.name}({stream.code}, {how})"
        for name, shape in helper.facts.defined.items():
            stream.define(name, shape)
        stream.open_role, stream.reads_values = helper.facts.open_role, True
        if helper.returned is not None:
            name = self._new_name("x")
            self.locals[name] = helper.returned
            code = f"{name} = {code}"
        return [Statement(code, features=frozenset({"function appended", *argument.features}))]

    def _call_stream(self, stream: StreamFacts) -> list[Statement]:  # noqa: ARG002 - one of several makers
        helper, name = self.random.choice(self.helpers), self._new_name("expert")
        argument = self.text_value()
        called = helper.facts.same_as(name)
        self.streams.append(called)
        code = f"{name} = {helper.function.name}(tip={argument.code})"
        if helper.returned is not None:
            self.locals[f"{name}.ret_value"] = helper.returned
        return [Statement(code, features=frozenset({"function as a stream", *argument.features}))]

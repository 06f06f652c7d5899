"""A recording as a graph of the language, to be drawn: prompts that begin alike are one stream until they part.

The calls of a run become the leaves of a tree over what their prompts say, in order. Each branch of the tree is a stream, a
parting is a ``Fork``, and so are the candidates of one call. An output that reappears in a later prompt is a ``Variable`` there.
Called by ``explain``; nobody runs these graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dspy.adapters.utils import format_field_value

from sgl_core.language.graph import GetForkItem, Graph, GraphNode, GraphStream, Join, Parameter, StreamKind
from sgl_core.language.ir import Argument, ConstantText, Expr, Fork, Gen, NodeValue, RoleBegin, RoleEnd, Variable
from sgl_dspy.compiled.recording import RecordedCall, Recording

__all__ = ["graph_of"]

_LONG: Final = 16
"""Characters from which text that stands inside other text is taken for the same value."""


@dataclass(frozen=True, slots=True)
class _Output:
    """A value that an earlier call made: which call, which candidate, which field."""

    call: int
    candidate: int
    name: str


Origin = str | _Output
"""Where a value comes from: an argument of the program, by name, or an output."""
Token = RoleBegin | RoleEnd | ConstantText | Argument | _Output
"""A piece of a prompt; prompts share what begins with equal ones."""


def graph_of(recording: Recording) -> Graph:
    """The graph of a run; valid, and nothing but a picture of it."""
    prompts = _prompts(recording)
    tree = _grown(prompts, list(range(len(prompts))), 0)
    drawing = _Drawing(recording)
    for index in range(len(prompts)):
        drawing.follow(tree, index)
    return drawing.graph()


# ---- prompts as pieces -----------------------------------------------------------------------------------------------
def _prompts(recording: Recording) -> list[list[Token]]:
    known: dict[str, Origin] = {}
    for name, value in recording.arguments.items():
        if isinstance(value, str) and value.strip():
            known[value.strip()] = name  # as adapters show it
    prompts: list[list[Token]] = []
    for index, call in enumerate(recording.calls):
        prompts.append(list(_tokens(call, known)))
        for candidate, values in enumerate(call.outputs):
            for name, value in values.items():
                if isinstance(value, str) and value.strip():
                    known.setdefault(value.strip(), _Output(index, candidate, name))
    return prompts


def _tokens(call: RecordedCall, known: Mapping[str, Origin]) -> Iterator[Token]:
    messages = call.prompts[0]
    spans = _value_spans(call, [_text_of(message) for message in messages])
    for number, message in enumerate(messages):
        role = str(message.get("role", "user"))
        yield RoleBegin(role)
        text, done = _text_of(message), 0
        for start, end, value in sorted(spans.get(number, ()), key=lambda span: span[:2]):
            if start >= done:
                yield from _constant(text[done:start])
                yield from _traced(text[start:end], value, known)
                done = end
        yield from _constant(text[done:])
        yield RoleEnd(role)


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _value_spans(call: RecordedCall, texts: Sequence[str]) -> dict[int, list[tuple[int, int, Any]]]:
    """Where the values of inputs stand, by message: behind their headers, the last time that they do."""
    spans: dict[int, list[tuple[int, int, Any]]] = {}
    for name, value in call.inputs.items():
        shown = str(format_field_value(call.signature.input_fields[name], value)).strip()
        header = f"[[ ## {name} ## ]]\n"
        for number in reversed(range(len(texts))):
            at = texts[number].rfind(header + shown) if shown else -1
            if at >= 0:
                start = at + len(header)
                spans.setdefault(number, []).append((start, start + len(shown), value))
                break
    return spans


def _traced(text: str, value: Any, known: Mapping[str, Origin]) -> Iterator[Token]:
    """The text of a value, with what it took from elsewhere in its place."""
    leaves = set(_leaves(value))
    found = [(text.find(needle), needle) for needle in known if needle == text or len(needle) >= _LONG or needle in leaves]
    done = 0
    for at, needle in sorted((at, needle) for at, needle in found if at >= 0):
        if at >= done:
            yield from _constant(text[done:at])
            origin = known[needle]
            yield Argument(origin) if isinstance(origin, str) else origin
            done = at + len(needle)
    yield from _constant(text[done:])


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leaves(item)


def _constant(text: str) -> Iterator[ConstantText]:
    if text:
        yield ConstantText(text)


# ---- the tree --------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Branch:
    """What some prompts have in common behind what they share with others.

    Args:
        tokens: of it.
        children: by call, where it goes on; empty if it is one call's own.
        stream: its id once it is drawn. ``fork``: the node at its end.
    """

    tokens: list[Token]
    children: list[tuple[list[int], _Branch]] = field(default_factory=list)
    stream: int | None = None
    fork: int = -1


def _grown(prompts: Sequence[Sequence[Token]], calls: list[int], depth: int) -> _Branch:
    first = prompts[calls[0]] if calls else []
    if len(calls) < 2:
        return _Branch(list(first[depth:]))
    end = depth
    while all(len(prompts[call]) > end and prompts[call][end] == first[end] for call in calls) and end < len(first):
        end += 1
    if all(isinstance(token, RoleBegin) for token in first[depth:end]):
        end = depth  # an opened turn alone is nothing to share
    groups: dict[Any, list[int]] = {}
    for call in calls:
        rest = prompts[call][end : end + 2]
        says = rest if rest and isinstance(rest[0], RoleBegin) else rest[:1]  # a turn's beginning alone says nothing
        groups.setdefault(tuple(says) or call, []).append(call)
    children = [(group, _grown(prompts, group, end)) for group in groups.values()]
    return _Branch(list(first[depth:end]), children)


# ---- the graph -------------------------------------------------------------------------------------------------------
class _Drawing:
    """Puts nodes down, call by call."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._streams = [GraphStream(0, StreamKind.ROOT, (), None)]
        self._nodes: list[GraphNode] = []
        self._made: dict[_Output, int] = {}
        self._num_children: dict[int, int] = {}

    def graph(self) -> Graph:
        parameters = tuple(Parameter(name) for name in self._recording.arguments)
        return Graph(self._recording.program, parameters, {}, tuple(self._streams), tuple(self._nodes))

    def follow(self, branch: _Branch, call: int) -> None:
        """Draw what is not drawn yet on the way to a call, and the call."""
        stream = 0
        if branch.stream is None:
            self._draw(branch, stream)
        while branch.children:
            index, child = next((i, b) for i, (calls, b) in enumerate(branch.children) if call in calls)
            if child.stream is None:
                self._draw(child, self._begin(stream, branch.fork, index))
            branch, stream = child, child.stream or 0
        self._answer(stream, call)

    def _draw(self, branch: _Branch, stream: int) -> None:
        branch.stream = stream
        for token in branch.tokens:
            self._add(stream, Variable(NodeValue(self._made[token], token.name)) if isinstance(token, _Output) else token)
        if branch.children:
            branch.fork = self._add(stream, Fork(len(branch.children)))

    def _answer(self, stream: int, call: int) -> None:
        """The reply: a generation for each output, in a stream for each candidate."""
        recorded = self._recording.calls[call]
        num_candidates = max(1, len(recorded.outputs))
        self._add(stream, RoleBegin("assistant"))
        names = list(recorded.signature.output_fields)
        if num_candidates == 1:
            self._generate(stream, call, 0, names)
        else:
            fork = self._add(stream, Fork(num_candidates))
            for candidate in range(num_candidates):
                self._generate(self._begin(stream, fork, candidate), call, candidate, names)
            self._add(stream, Join(fork))
        self._add(stream, RoleEnd("assistant"))

    def _generate(self, stream: int, call: int, candidate: int, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            self._made[_Output(call, candidate, name)] = self._add(stream, Gen(name), index=index)

    def _begin(self, parent: int, fork: int, index: int) -> int:
        number = self._num_children[parent] = self._num_children.get(parent, -1) + 1
        path = (*self._streams[parent].path, number)
        self._streams.append(GraphStream(len(self._streams), StreamKind.FORK, path, parent))
        self._add(len(self._streams) - 1, GetForkItem(fork, index))
        return len(self._streams) - 1

    def _add(self, stream: int, op: Expr, *, index: int = 0) -> int:
        self._nodes.append(GraphNode(len(self._nodes), stream, op, index=index))
        return len(self._nodes) - 1

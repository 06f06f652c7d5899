"""Graphs for tests: a small builder, the graphs of three programs made by hand, and those that the tracer makes of a body.

The ones made by hand are what the tracer makes of such programs, so that a test of what reads graphs needs no tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Parameter,
    Place,
    Read,
    StreamBegin,
    StreamKind,
    StreamState,
)
from sgl_core.language.ir import (
    Argument,
    Expr,
    ExprList,
    Fork,
    Gen,
    NodeValue,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.program import function
from sgl_core.language.tracer import trace
from sgl_core.language.verifier import verify

__all__ = ["GraphBuilder", "essay_judge_graph", "ops", "roles_graph", "tip_suggestion_graph", "traced"]

_METHOD = "token_length_normalized"


class GraphBuilder:
    """Collects nodes in program order; numbers them, the streams, and the generations of each stream as the tracer does.

    Args:
        name: of the program.
        parameters: its arguments.
        file: where its lines are.
        **static: arguments that are fixed.
    """

    def __init__(self, name: str, *parameters: Parameter, file: str = "program.py", **static: Any) -> None:
        """Begin with the root stream, which has id 0."""
        self._name = name
        self._parameters = parameters
        self._static = static
        self._file = file
        self._place: Place | None = None
        self._streams = [GraphStream(0, StreamKind.ROOT, (), None)]
        self._nodes: list[GraphNode] = []
        self._num_children: dict[int, int] = {}
        self._num_generations: dict[int, int] = {}

    def at(self, line: int, text: str = "") -> None:
        """Nodes from here on come from this line of the program."""
        self._place = Place(self._file, line, text)

    def add(self, op: Expr, stream: int = 0, **annotations: Any) -> int:
        """Add a node and return its id; ``annotations`` are further fields of ``GraphNode``."""
        if isinstance(op, Gen | Select) and "index" not in annotations:
            annotations["index"] = self._num_generations.get(stream, 0)
            self._num_generations[stream] = annotations["index"] + 1
        node = GraphNode(len(self._nodes), stream, op, place=self._place, **annotations)
        self._nodes.append(node)
        return node.id

    def say(self, *parts: Expr | str, stream: int = 0, role: str | None = None) -> tuple[int, ...]:
        """Add text and expressions, inside a turn if ``role`` is given, and return their ids without the turn's."""
        if role is not None:
            self.add(RoleBegin(role), stream)
        items = [item for part in parts for item in (ExprList() + part).nodes()]
        ids = tuple(self.add(item, stream) for item in items)
        if role is not None:
            self.add(RoleEnd(role), stream)
        return ids

    def fork(self, number: int, stream: int = 0, **annotations: Any) -> tuple[int, ...]:
        """Fork, and return the ids of the new streams. ``node_of_fork`` says which node it is."""
        fork = self.add(Fork(number), stream, **annotations)
        children = tuple(self._new_stream(StreamKind.FORK, stream) for _ in range(number))
        for index, child in enumerate(children):
            self.add(GetForkItem(fork, index), child)
        return children

    def node_of_fork(self, child: int) -> int:
        """The id of the ``Fork`` that made a stream."""
        first = next(node.op for node in self._nodes if node.stream == child)
        if not isinstance(first, GetForkItem):
            raise KeyError(child)
        return first.fork

    def join(self, child: int, mode: str = "gather_variable", errors: str = "raise") -> int:
        """Join the fork that made stream ``child``, in the parent."""
        parent = self._streams[child].parent
        return self.add(Join(self.node_of_fork(child), mode, errors), parent or 0)

    def call(self, function: str, stream: int = 0) -> int:
        """Begin the stream of a function that is called, and return its id."""
        child = self._new_stream(StreamKind.CALL, stream)
        self.add(StreamBegin(function), child)
        return child

    def build(self, returns: Any = None) -> Graph:
        """The graph."""
        return Graph(self._name, self._parameters, self._static, tuple(self._streams), tuple(self._nodes), returns)

    def _new_stream(self, kind: StreamKind, parent: int) -> int:
        index = self._num_children.get(parent, 0)
        self._num_children[parent] = index + 1
        stream = GraphStream(len(self._streams), kind, (*self._streams[parent].path, index), parent)
        self._streams.append(stream)
        return stream.id


def essay_judge_graph(dimensions: tuple[str, ...] = ("clarity", "evidence", "style")) -> Graph:
    """An essay, judged on each dimension in a fork of its own; then a summary and a grade."""
    b = GraphBuilder("essay_judge", Parameter("essay"), file="essay_judge.py", dimensions=dimensions)
    b.at(3, 's += sgl.system("You judge essays.") + sgl.user("Essay:\\n" + essay)')
    b.say("You judge essays.", role="system")
    b.say("Essay:\n", Argument("essay"), role="user")
    b.at(4, "forks = s.fork(len(dimensions))")
    forks = b.fork(len(dimensions))
    judgements: list[NodeValue] = []
    for fork, dimension in zip(forks, dimensions, strict=True):
        b.at(6, 'f += sgl.user(f"Judge it on {d}.") + sgl.assistant(sgl.gen("judgement", max_tokens=48))')
        b.say(f"Judge it on {dimension}.", stream=fork, role="user")
        (gen,) = b.say(Gen("judgement", {"max_new_tokens": 48}), stream=fork, role="assistant")
        judgements.append(NodeValue(gen, "judgement"))
    b.at(7, "forks.join()")
    b.join(forks[0])
    b.at(8, 's += sgl.user("Summary of the judgements:\\n" + sgl.call("\\n".join, s["judgement"]))')
    joined = b.add(Call("\n".join, (judgements,)))
    b.say("Summary of the judgements:\n", Variable(NodeValue(joined)), role="user")
    b.at(9, 's += sgl.assistant(sgl.gen("summary", max_tokens=64))')
    b.say(Gen("summary", {"max_new_tokens": 64}), role="assistant")
    b.at(10, 's += sgl.user("Grade it.") + sgl.assistant("Grade: " + sgl.select("grade", ["A", "B", "C", "D"]))')
    b.say("Grade it.", role="user")
    b.say("Grade: ", Select("grade", ("A", "B", "C", "D"), _METHOD), role="assistant")
    return b.build()


def tip_suggestion_graph() -> Graph:
    """Two tips, each written by a function in a stream of its own, and a summary of both."""
    b = GraphBuilder("main", Parameter("topic", "staying healthy", True), file="tip_suggestion.py")
    tips = ("balanced diet", "regular exercise")
    details: list[NodeValue] = []
    for tip in tips:
        b.at(12, "first, second = (expand_tip(topic=topic, tip=tip) for tip in tips)")
        stream = b.call("expand_tip")
        b.at(5, 's += sgl.system("You give short, practical advice.")')
        b.say("You give short, practical advice.", stream=stream, role="system")
        b.at(6, 's += sgl.user("Topic: " + topic + ". Explain this tip in two sentences: " + tip)')
        b.say("Topic: ", Argument("topic"), f". Explain this tip in two sentences: {tip}", stream=stream, role="user")
        b.at(7, 's += sgl.assistant(sgl.gen("detailed_tip", max_tokens=64, temperature=0))')
        (gen,) = b.say(Gen("detailed_tip", {"max_new_tokens": 64, "temperature": 0}), stream=stream, role="assistant")
        details.append(NodeValue(gen, "detailed_tip"))
    b.at(13, 's += sgl.user("Give me two tips on " + topic + ".")')
    b.say("Give me two tips on ", Argument("topic"), ".", role="user")
    b.at(15, '+ first["detailed_tip"]')
    for detail in details:
        b.add(Read(detail))
    first, second = (Variable(detail) for detail in details)
    summary = Gen("summary", {"max_new_tokens": 32, "temperature": 0})
    b.say(f"1. {tips[0]}: ", first, f"\n2. {tips[1]}: ", second, "\nIn short: ", summary, role="assistant")
    return b.build(returns=[StreamState(1), StreamState(2)])


def roles_graph() -> Graph:
    """Turns, a capture, a choice, and a copy that is never joined, in an open turn."""
    b = GraphBuilder("interview", Parameter("name"), file="interview.py")
    b.at(2, 's += sgl.user("Who is " + name + "?")')
    b.say("Who is ", Argument("name"), "?", role="user")
    b.at(3, 'with s.assistant(), s.var_scope("answer"):')
    b.add(RoleBegin("assistant"))
    b.add(ScopeBegin("answer"))
    b.at(4, 's += "A " + sgl.select("kind", ["poet", "painter"]) + " from " + sgl.gen("place", stop="\\n")')
    kind, place = "kind", "place"
    _, kind_id, _, _ = b.say("A ", Select(kind, ("poet", "painter"), _METHOD), " from ", Gen(place, {"stop": ("\n",)}))
    b.at(3, 'with s.assistant(), s.var_scope("answer"):')
    answer = b.add(ScopeEnd("answer"))
    b.at(5, "c = s.copy()")
    (copy,) = b.fork(1)
    b.at(6, 'c += ", in other words " + sgl.gen()')
    b.say(", in other words ", stream=copy)
    b.add(Gen("_unnamed_0"), copy, is_automatic=True)
    b.add(RoleEnd("assistant"), copy)
    b.at(3, 'with s.assistant(), s.var_scope("answer"):')
    b.add(RoleEnd("assistant"))
    b.at(7, 'return s["kind"], s["answer"]')
    b.add(Read(NodeValue(kind_id, kind)))
    b.add(Read(NodeValue(answer, "answer")))
    return b.build(returns=(NodeValue(kind_id, kind), NodeValue(answer, "answer")))


def traced(body: Callable[..., Any], **static: Any) -> Graph:
    """The verified graph of a program's body, before any pass."""
    graph = trace(function(body), static=static)
    verify(graph)
    return graph


def ops(graph: Graph, stream: int = 0) -> list[Expr]:
    """What the nodes of one stream do, in order."""
    return [node.op for node in graph.of_stream(stream)]

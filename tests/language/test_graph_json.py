"""Graphs as JSON: what is written comes back equal, and whatever else is read is a GraphError."""

import json
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_core.errors import GraphError
from sgl_core.language.graph import Call, Graph, Parameter, Read, SetVar, StreamState
from sgl_core.language.graph_json import from_json, to_json
from sgl_core.language.ir import (
    Argument,
    CommutativeMark,
    ConstantText,
    Gen,
    Image,
    JoinedValue,
    NodeValue,
    Prefetch,
    RawText,
    Select,
    Variable,
)
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph

METHOD = "token_length_normalized"


def of_op(op) -> Graph:
    b = GraphBuilder("program", Parameter("x"))
    b.add(Gen("v"))
    b.add(op)
    return b.build()


def came_back(op, **options):
    return from_json(to_json(of_op(op)), **options).nodes[1].op


def document(graph=None) -> dict:
    return json.loads(to_json(roles_graph() if graph is None else graph))


def refusal(changed) -> str:
    with pytest.raises(GraphError) as raised:
        from_json(changed if isinstance(changed, str) else json.dumps(changed))
    return str(raised.value)


def shout(text):
    return text.upper()


# ---- there and back --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [tip_suggestion_graph, roles_graph])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_graph_comes_back_equal(make, indent):
    assert from_json(to_json(make(), indent=indent)) == make()


def test_calls_come_back_with_what_they_call():
    graph = essay_judge_graph()
    back = from_json(to_json(graph))
    calls = [(n.op.fn, n.op.args, n.op.kwargs) for g in (graph, back) for n in g.nodes if isinstance(n.op, Call)]
    assert calls[0] == calls[1]
    assert [n for n in back.nodes if not isinstance(n.op, Call)] == [n for n in graph.nodes if not isinstance(n.op, Call)]
    assert replace(back, nodes=()) == replace(graph, nodes=())


@pytest.mark.parametrize(
    "op",
    [
        ConstantText("\ud800 half a pair, \x00 and é"),
        RawText("<|im_end|>"),
        Argument("x"),
        Variable(NodeValue(0, "v")),
        Image("cat.png"),
        Image(bytes(range(256))),
        Gen("w", {"max_new_tokens": 3, "stop": ("\n", "."), "stop_token_ids": (1, 2), "temperature": 0.5, "logprobs": None}),
        Gen("w", {"logit_bias": {7: 1.5, 2_000_000: -3}, "regex": "[0-9]+", "ignore_eos": True, "seed": 2**62}),
        Gen("w", {"json_schema": '{"type": "object"}'}, bool, False, "qwen3"),
        Gen("w", {}, float, "token"),
        Select("w", ("a", "b", "a"), METHOD),
        CommutativeMark("begin"),
        Prefetch(7),
        Read(NodeValue(0, "v")),
        SetVar("w", None),
        SetVar("w", {"a": [1, (2.5, True)], "$node": 3, 4: b"\xff", ("k",): NodeValue(0, "v")}),
    ],
)
def test_every_kind_of_node_comes_back_equal(op):
    graph = of_op(op)
    if isinstance(op, CommutativeMark):
        b = GraphBuilder("program", Parameter("x"))
        b.add(Gen("v"))
        b.add(op)
        b.add(CommutativeMark("end"))
        graph = b.build()
    back = from_json(to_json(graph))
    assert back == graph
    assert type(back.nodes[1].op) is type(op)


def test_joins_annotations_and_joined_values_come_back():
    b = GraphBuilder("program")
    forks = b.fork(2, commit=True)
    for fork in forks:
        b.add(Gen("v"), fork, same_as=None if fork == forks[0] else 3, last_use=True)
    join = b.join(forks[0], errors="keep")
    b.add(Read(JoinedValue(join, "v", 1)))
    b.add(Gen("_unnamed_0"), is_automatic=True)
    graph = b.build(returns={"states": [StreamState(1)], "value": JoinedValue(join, "v", 0)})
    assert from_json(to_json(graph)) == graph


def test_defaults_and_static_arguments_keep_their_types():
    parameters = (Parameter("a"), Parameter("b", None, True), Parameter("c", ("x", [1]), True))
    graph = Graph("p", parameters, {"d": {"k": (1, 2.0)}, "e": False}, roles_graph().streams[:1], ())
    back = from_json(to_json(graph))
    assert back == graph
    assert type(back.parameters[2].default) is tuple
    assert type(back.static["d"]["k"][1]) is float


def test_a_class_that_describes_itself_is_written_as_its_schema():
    class Person:
        @classmethod
        def model_json_schema(cls):
            return {"type": "object", "title": "Person"}

    assert came_back(Gen("w", {"json_schema": Person})).options["json_schema"] == '{"type": "object", "title": "Person"}'


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$tuple"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def typed(tree):
    """The tree with every type beside it: 1, 1.0 and True are equal."""
    if isinstance(tree, list | tuple):
        return type(tree).__name__, [typed(item) for item in tree]
    if isinstance(tree, dict):
        return "dict", [(typed(key), typed(value)) for key, value in tree.items()]
    return type(tree).__name__, repr(tree)


@settings(max_examples=150, deadline=None)
@given(PLAIN)
def test_any_plain_value_comes_back_with_its_types(value):
    assert typed(came_back(SetVar("w", value)).value) == typed(value)


# ---- functions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fn", [len, int, sorted, str, str.strip, str.upper])
def test_builtins_and_methods_of_str_need_not_be_given(fn):
    assert came_back(Call(fn, (NodeValue(0, "v"),))).fn is fn


def test_a_method_of_a_text_keeps_the_text():
    assert came_back(Call(", ".join, (["a", "b"],))).fn(["a", "b"]) == "a, b"


def test_a_function_is_taken_from_those_given():
    assert came_back(Call(shout, (), {"text": NodeValue(0, "v")}), functions={f"{__name__}:shout": shout}).fn is shout


def test_missing_functions_are_all_named():
    b = GraphBuilder("program")
    for fn in (shout, json.loads, len):
        b.add(Call(fn, ("a",)))
    with pytest.raises(GraphError, match=r'"[\w.]+:shout", "json:loads", which are not given'):
        from_json(to_json(b.build()))


@pytest.mark.parametrize("name", ["builtins:eval", "builtins:open", "os:system", "builtins:str.format", "len", ""])
def test_a_document_cannot_choose_what_is_run(name):
    changed = document(of_op(Call(len, ("a",))))
    changed["nodes"][1]["op"]["fn"] = name
    assert "not given" in refusal(changed)


@pytest.mark.parametrize("method", ["format", "format_map", "__len__", "__class__", "nothing"])
def test_only_harmless_methods_of_text_are_taken(method):
    changed = document(of_op(Call("a".join, (["a"],))))
    changed["nodes"][1]["op"]["fn"]["method"] = method
    assert "nodes[1].op.fn.method" in refusal(changed)


@pytest.mark.parametrize("fn", ["{}".format, type("Callable", (), {"__call__": lambda self: ""})()])
def test_what_has_no_name_cannot_be_written(fn):
    with pytest.raises(GraphError, match=r"^%1.fn: .* has no name to write"):
        to_json(of_op(Call(fn, ())))


def test_two_functions_of_one_name_cannot_be_written():
    b = GraphBuilder("program")
    for _ in range(2):
        b.add(Call(lambda: "", ()))
    with pytest.raises(GraphError, match=r"is called .*<lambda>, too"):
        to_json(b.build())


# ---- what cannot be written ------------------------------------------------------------------------------------------
class Pair(NamedTuple):
    a: int


def endless():
    inner: list = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, math.nan, math.inf, Pair(1), len, [10**5000], endless(), [[object()]], NodeValue(0, "v")]
)
def test_an_argument_that_json_cannot_express_is_named(value):
    graph = of_op(ConstantText("a"))
    with pytest.raises(GraphError, match="static argument 'thing'"):
        to_json(replace(graph, static={"thing": value}))
    with pytest.raises(GraphError, match="default of argument 'x'"):
        to_json(replace(graph, parameters=(Parameter("x", value, True),)))


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1", "nonsense", "[]", "null", "3", '"a"', "[" * 100_000, '{"a":' * 100_000, '{"format": NaN}',
        '{"format": 1e999}', '{"format": 1, "format": 1}', '{"format": ' + "9" * 5000 + "}", "\x00", "\ufeff{}",
    ],
)  # fmt: skip
def test_text_that_is_no_document_is_refused(text):
    assert refusal(text)


def test_anything_but_text_is_refused():
    with pytest.raises(GraphError, match="expected a JSON text"):
        from_json(b"{}")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 10**30])
def test_another_version_is_refused(version):
    assert refusal({**document(), "format": version}).startswith("format: expected 1")


def test_unknown_and_missing_fields_are_named_with_their_place():
    assert 'unknown field "more"' in refusal({**document(), "more": 1})
    assert "'static' is missing" in refusal({k: v for k, v in document().items() if k != "static"})
    changed = document()
    changed["nodes"][1]["op"]["txet"] = "a"
    assert refusal(changed).startswith('nodes[1].op: unknown field "txet"; known: kind, text')
    changed = document()
    del changed["nodes"][2]["op"]["name"]
    assert refusal(changed) == "nodes[2].op: field 'name' is missing"


def test_unknown_kinds_are_named_with_their_place():
    changed = document()
    changed["nodes"][3]["op"]["kind"] = "Eval"
    assert refusal(changed).startswith('nodes[3].op.kind: got "Eval", expected one of ConstantText')
    changed = document()
    changed["streams"][1]["kind"] = "river"
    assert refusal(changed).startswith("streams[1].kind")


def test_what_was_read_keeps_the_rules_of_graphs():
    changed = document()
    changed["nodes"].pop(0)
    assert refusal(changed).startswith("turns: ")


def test_options_are_checked_like_those_of_a_gen():
    for options, what in (
        ({"temperature": -1}, "temperature"),
        ({"warmth": 1}, 'unknown field "warmth"'),
        ({"stop": 3}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"choices": ["a"]}, "unknown field"),
    ):
        changed = document(of_op(Gen("w")))
        changed["nodes"][1]["op"]["options"] = options
        assert what in refusal(changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "complex"), ("dtype", []), ("heal", "all"), ("heal", []), ("reasoning", "x"), ("reasoning", {})],
)
def test_fields_of_a_gen_are_checked(field, value):
    changed = document(of_op(Gen("w")))
    changed["nodes"][1]["op"][field] = value
    assert refusal(changed).startswith(f"nodes[1].op.{field}: ")


@pytest.mark.parametrize(
    "value",
    [
        {"$eval": 1}, {"$tuple": 1}, {"$tuple": [], "more": 1}, {"$bytes": "!"}, {"$bytes": 1}, {"$bytes": "é"}, {"$dict": [[1]]},
        {"$dict": [1]}, {"$dict": [[[], 1]]}, {"$dict": [[1, 2], [1, 3]]}, {"$node": "0"}, {"$node": -1}, {"$node": 0, "name": 1},
        {"$joined": 0}, {"$argument": 1}, {"$stream": 0}, {"$node": 1e300},
    ],
)  # fmt: skip
def test_trees_are_checked(value):
    changed = document(of_op(SetVar("w", 1)))
    changed["nodes"][1]["op"]["value"] = value
    assert refusal(changed).startswith("nodes[1].op.value")


def test_edges_do_not_belong_into_arguments():
    assert refusal({**document(), "static": {"a": {"$node": 0}}}).startswith('static["a"]: "$node" does not belong here')


def test_a_tree_that_is_too_deep_is_refused():
    changed = to_json(of_op(SetVar("w", "HERE"))).replace('"HERE"', "[" * 200 + "]" * 200)
    assert "levels deep" in refusal(changed)


def hostile(value, path=()):
    """Every place of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from hostile(item, (*path, key))


@pytest.mark.parametrize("poison", [None, True, -1, 10**12, 1.5, "", "x", [], [[]], {}, {"$node": 99}])
def test_a_wrong_value_anywhere_is_read_or_refused_but_nothing_else(poison):
    whole = json.dumps(document(essay_judge_graph(("a", "b"))))
    num_refused = 0
    places = list(hostile(json.loads(whole)))
    for path in places:
        changed = json.loads(whole)
        at = changed
        for key in path[:-1]:
            at = at[key]
        if path:
            at[path[-1]] = poison
        try:
            from_json(json.dumps(changed))
        except GraphError:
            num_refused += 1
    assert num_refused > len(places) / 3

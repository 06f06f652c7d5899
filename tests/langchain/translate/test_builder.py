"""What plugins build nodes with."""

import pytest
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from sgl_core.errors import InvalidArgumentError
from sgl_langchain.translate import nodes
from sgl_langchain.translate.builder import RunnableBuilder
from sgl_langchain.translate.lower import lower

FOREIGN = RunnablePassthrough()


@pytest.fixture
def builder():
    return RunnableBuilder(lower)


@pytest.fixture
def step(builder):
    return builder.lower(RunnableLambda(len))


def test_composites_hold_their_parts_and_stand_for_the_foreign_runnable(builder, step):
    made = [
        builder.sequence(FOREIGN, [step, step]),
        builder.parallel(FOREIGN, {"a": step, "b": step}),
        builder.each(FOREIGN, step),
        builder.branch(FOREIGN, [(step, step)], step),
    ]
    assert [len(node.children()) for node in made] == [2, 2, 1, 3]
    assert all(node.runnable is FOREIGN for node in made)


def test_a_call_has_the_name_of_its_function(builder):
    node = builder.call(FOREIGN, len, is_pure=True)
    assert (node.name, node.fn, node.is_pure, node.is_known) == ("len", len, True, True)


def test_a_call_without_a_function_is_the_runnable_itself(builder):
    node = builder.call(FOREIGN, name="theirs")
    assert (node.name, node.fn) == ("theirs", None)


def test_a_model_gets_its_options(builder, chat):
    node = builder.model(FOREIGN, chat, max_tokens=3)
    assert isinstance(node, nodes.Binding)
    assert dict(node.bound.options) == {"max_tokens": 3}


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("runnable", lambda b, step: b.lower(len)),
        ("steps", lambda b, step: b.sequence(FOREIGN, [])),
        ("steps", lambda b, step: b.sequence(FOREIGN, [step, FOREIGN])),
        ("branches", lambda b, step: b.parallel(FOREIGN, {"a": len})),
        ("bound", lambda b, step: b.each(FOREIGN, None)),
        ("arms", lambda b, step: b.branch(FOREIGN, [(len, step)], step)),
        ("default", lambda b, step: b.branch(FOREIGN, [], FOREIGN)),
        ("model", lambda b, step: b.model(FOREIGN, FOREIGN)),
        ("fn", lambda b, step: b.call(FOREIGN, "len")),
    ],
)
def test_wrong_parts_are_named(builder, step, argument, build):
    with pytest.raises(InvalidArgumentError) as caught:
        build(builder, step)
    assert caught.value.argument == argument

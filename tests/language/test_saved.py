"""Programs that are saved as graphs and run without their source."""

import pytest

import sgl_core.language as sgl
from sgl_core.errors import GraphError, InvalidArgumentError, ProgramError
from sgl_core.language.graph_json import to_json


def shout(text):
    return text.upper() + "!"


@sgl.function
def talk(s, topic, style="plain", hint=None):
    s += sgl.user("About " + topic + ", " + style + ("" if hint is None else hint))
    forks = s.fork(2)
    forks += sgl.assistant(sgl.gen("x", max_tokens=4))
    forks.join()
    s += sgl.user("; ") + sgl.assistant(sgl.call(", ".join, s["x"]) + sgl.select("y", ["a", "b"]))
    return s["x"][0], s["y"]


def seen(state):
    return state.text(), state.messages(), state.variables(), state.ret_value


def saved(function, **options):
    return to_json(function.compile(**options).graph)


@pytest.mark.parametrize("arguments", [("cats",), ("cats", "rude")])
def test_a_loaded_program_does_what_the_saved_one_does(backend, arguments):
    loaded = sgl.load_graph(saved(talk, static={"hint": None}))
    expected = talk.run(*arguments, backend=backend, seed=4)
    assert seen(loaded.run(*arguments, backend=backend, seed=4)) == seen(expected)
    (batched,) = loaded.run_batch([arguments], backend=backend, temperature=0)
    assert seen(batched) == seen(talk.run(*arguments, backend=backend, temperature=0))


def test_a_loaded_program_explains_itself_and_knows_its_arguments(backend):
    loaded = sgl.load_graph(saved(talk, static={"hint": None}), backend=backend)
    assert loaded.explain().startswith("talk: compiled with static hint")
    with pytest.raises(InvalidArgumentError, match=r"topic: got 'nothing', expected a value"):
        loaded.run(backend=backend)


def test_a_flag_that_was_not_static_when_it_was_saved_is_refused_with_the_cure(backend):
    loaded = sgl.load_graph(saved(talk))
    assert loaded.run("cats", "rude", ", kindly", backend=backend).messages()[0]["content"] == "About cats, rude, kindly"
    with pytest.raises(InvalidArgumentError, match=r"hint: got None, .*static=\{'hint': None\}"):
        loaded.run("cats", backend=backend)


def test_host_code_is_only_what_the_loader_gives():
    @sgl.function
    def loud(s, text):
        s += sgl.call(shout, text)

    text = saved(loud)
    with pytest.raises(GraphError, match="shout"):
        sgl.load_graph(text)
    name = f"{shout.__module__}:{shout.__qualname__}"
    assert sgl.load_graph(text, functions={name: shout}).graph.name == "loud"


def test_the_body_of_a_loaded_program_cannot_be_interpreted(backend):
    loaded = sgl.load_graph(saved(talk, static={"hint": None}))
    with pytest.raises(ProgramError, match="talk was loaded from a graph"):
        loaded.function.run("cats", backend=backend)

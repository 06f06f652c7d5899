"""``sgl graph FILE``: a program is traced, and its graph shown."""

import json
from xml.etree import ElementTree

import pytest

from sgl_core.errors import TraceError
from sgl_core.language import SglFunction
from sgl_core.language.graph_json import from_json
from sgl_core.testing.graphs import essay_judge_graph
from sgl_native import cli

PROGRAM = """
import sgl_native as sgl

@sgl.function
def judge(s, essay, dimensions):
    s += sgl.user("Essay: " + essay)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return str(path)


@pytest.fixture
def traced(monkeypatch):
    """Static arguments that programs were traced with; every one gives the essay judge's graph."""
    given = []

    def trace(self, *, static=None):
        given.append(static)
        return essay_judge_graph()

    monkeypatch.setattr(SglFunction, "trace", trace)
    return given


def test_without_an_option_the_graph_is_listed(traced, program, capsys):
    assert cli.main(["graph", program]) == 0
    assert "%7 = Fork(%6, 3)" in capsys.readouterr().out


def test_a_program_is_really_traced(program, capsys):
    assert cli.main(["graph", program]) == 0
    assert "Argument(essay)" in capsys.readouterr().out


def test_svg_writes_a_picture_with_the_name_of_the_file(traced, program, tmp_path, capsys):
    out = tmp_path / "graph.svg"
    assert cli.main(["graph", program, "--svg", str(out)]) == 0
    assert ElementTree.parse(out).getroot().get("aria-label") == "Graph of judge.py"
    captured = capsys.readouterr()
    assert str(out) in captured.err
    assert captured.out == ""


def test_several_documents_can_be_written_at_once(traced, program, tmp_path):
    paths = {name: tmp_path / name for name in ("dot", "mermaid", "json")}
    assert cli.main(["graph", program, *(word for name, path in paths.items() for word in (f"--{name}", str(path)))]) == 0
    assert len(traced) == 1
    assert paths["dot"].read_text(encoding="utf-8").startswith("digraph")
    assert paths["mermaid"].read_text(encoding="utf-8").startswith("flowchart")
    assert from_json(paths["json"].read_text(encoding="utf-8")).name == "essay_judge"


def test_static_arguments_are_json_or_text(traced, program):
    assert cli.main(["graph", program, "--static", 'dimensions=["a", "b"]', "--static", "essay=some words"]) == 0
    assert traced == [{"dimensions": ["a", "b"], "essay": "some words"}]


def test_a_static_argument_that_the_program_does_not_have_is_bad_input(traced, program, capsys):
    assert cli.main(["graph", program, "--static", "dimension=3"]) == 2
    assert "dimensions" in capsys.readouterr().err
    assert traced == []


@pytest.mark.parametrize("assignment", ["dimensions", "=3", "a=1"])
def test_an_assignment_that_cannot_be_read_is_bad_input(traced, program, assignment, capsys):
    assert cli.main(["graph", program, "--static", assignment, "--static", assignment]) == 2
    assert "--static" in capsys.readouterr().err


def test_a_program_that_cannot_be_traced_has_exit_code_1_and_the_message(monkeypatch, program, capsys):
    def trace(self, *, static=None):
        raise TraceError(
            "len() of argument 'dimensions' is needed", "Give it with static=.", place="judge.py:5: len(dimensions)"
        )

    monkeypatch.setattr(SglFunction, "trace", trace)
    assert cli.main(["graph", program]) == 1
    assert capsys.readouterr().err == (
        "sgl: error: len() of argument 'dimensions' is needed (judge.py:5: len(dimensions)). Give it with static=.\n"
    )


def test_an_argument_that_has_to_be_static_is_said_in_the_words_of_the_command(tmp_path, capsys):
    program = tmp_path / "judge.py"
    program.write_text(PROGRAM + "    s.fork(len(dimensions))\n", encoding="utf-8")
    assert cli.main(["graph", str(program)]) == 1
    assert capsys.readouterr().err.endswith(" Here: --static dimensions=VALUE.\n")


@pytest.mark.parametrize("option", ["--svg", "--dot", "--mermaid", "--json"])
def test_a_file_that_cannot_be_written_is_bad_input(traced, program, tmp_path, option, capsys):
    assert cli.main(["graph", program, option, str(tmp_path / "absent" / "out")]) == 2
    assert traced == []
    assert cli.main(["graph", program, option, str(tmp_path)]) == 2
    assert capsys.readouterr().err.count(f"{option}: got") == 2


def test_a_graph_that_json_cannot_express_is_bad_input(monkeypatch, program, tmp_path, capsys):
    monkeypatch.setattr(SglFunction, "trace", lambda self, *, static=None: essay_judge_graph((object(),)))
    out = tmp_path / "out.json"
    assert cli.main(["graph", program, "--json", str(out)]) == 2
    assert "static argument 'dimensions'" in capsys.readouterr().err
    assert not out.exists()


def test_json_is_data(traced, program, tmp_path):
    out = tmp_path / "out.json"
    assert cli.main(["graph", program, "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["format"] == 1

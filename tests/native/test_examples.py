"""Every native example runs as ``python examples/NAME.py``, here on a fake engine."""

import runpy
import sys
from pathlib import Path

import pytest

import sgl_native
from sgl_native import cli

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OTHER_FRAMEWORKS = ("langchain", "dspy")
NATIVE = [
    path.stem
    for path in sorted(EXAMPLES.glob("*.py"))
    if not any(name in path.read_text(encoding="utf-8") for name in OTHER_FRAMEWORKS)
]


@pytest.fixture
def run_example(monkeypatch, tree_backend, fitting):
    """Run an example as a script; returns its namespace."""

    def run(name, reply=fitting):
        monkeypatch.setitem(vars(sgl_native), "Engine", lambda **options: tree_backend(reply, **options))
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def test_the_examples_are_found():
    assert {"essay_judge", "few_shot_classification", "multi_turn_chat", "tip_suggestion", "tree_of_thought"} <= set(NATIVE)
    assert {"few_shot_qa", "mt_bench", "select_methods", "int_decode", "json_regex", "expert_answer"} <= set(NATIVE)
    assert {"tool_use", "react", "parallel_decoding", "streaming"} <= set(NATIVE)


@pytest.mark.parametrize("name", [name for name in NATIVE if name != "essay_judge"])
def test_an_example_runs_as_a_script_and_prints(name, run_example, capsys):
    run_example(name)
    assert len(capsys.readouterr().out.split()) > 5


def test_the_essay_judge_says_by_its_exit_code_that_a_fake_cache_saves_nothing(run_example, capsys):
    with pytest.raises(SystemExit) as exited:
        run_example("essay_judge")
    assert exited.value.code == 1
    assert "texts and values of the two runs: equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["multi_turn_chat", "react", "few_shot_classification", "few_shot_qa", "mt_bench", "tree_of_thought"]
)
def test_an_example_says_how_much_was_cached(name, run_example, capsys):
    run_example(name)
    assert "cached" in capsys.readouterr().out


@pytest.mark.parametrize("name", NATIVE)
def test_an_example_can_be_run_and_drawn_by_the_command(name, opened_trees, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for command in ("run", "cache"):
        assert cli.main([command, str(EXAMPLES / f"{name}.py")]) == 0
    assert "tokens held in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("expression", "value"),
    [("86 * 12", "1032"), (" (7 + 5) * -3", "-36"), ("1 / 8", "0.125"), ("1 / 0", "error: ZeroDivisionError")],
)
def test_the_calculator_of_react_computes(run_example, expression, value):
    assert run_example("react")["calculate"](expression) == value


@pytest.mark.parametrize("expression", ["__import__('os')", "2 ** 9999", "x", "1 +", "'a' * 9", "", "(" * 500])
def test_the_calculator_of_react_takes_nothing_but_arithmetic(run_example, expression):
    assert run_example("react")["calculate"](expression).startswith("error: ")


def test_react_stops_after_its_most_steps(run_example, capsys, tree_backend):
    namespace = run_example("react", reply=lambda ids, params: " 1 + 1")
    state = namespace["react"].run(question="?", backend=tree_backend(lambda ids, params: " 1 + 1"))
    assert state.text().removeprefix(namespace["EXAMPLES"]).count("Thought:") <= namespace["MOST_STEPS"]


def test_the_tree_of_thought_goes_on_from_the_proposal_judged_best(run_example, tree_backend):
    namespace = run_example("tree_of_thought")
    state = namespace["tree_of_thought"].run(depth=2, width=4, backend=tree_backend(), seed=1)
    assert len(state["story"]) == 2
    assert [len(scores) for scores in state["scores"]] == [4, 4]

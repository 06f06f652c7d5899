"""``sgl cache FILE``: a program is run and its prefix tree drawn."""

from xml.etree import ElementTree

import pytest

from sgl_native import cli

PROGRAM = """
import sgl_native as sgl

@sgl.function
def judge(s, text="the sea"):
    s += sgl.user("Read: " + text)
    forks = s.fork(2)
    forks += lambda i: sgl.assistant(f"{i}: " + sgl.gen("judgement", max_tokens=8))
    forks.join()
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return str(path)


def test_the_tree_of_the_program_is_drawn_with_what_its_forks_share(opened_trees, program, capsys):
    assert cli.main(["cache", program]) == 0
    out = capsys.readouterr().out
    assert "Read: the sea" in out
    assert "×2" in out
    assert "for 2 sequences; one by one they would take" in out


def test_arguments_and_options_reach_program_and_engine(opened_trees, program, capsys):
    options = ["--arg", "text=the moon", "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "7", "--model", "some"]
    assert cli.main(["cache", program, *options]) == 0
    assert "the moon" in capsys.readouterr().out
    ((config, _),) = opened_trees
    assert (config.dtype, config.device, config.default_max_new_tokens, config.model) == ("float32", "cpu", 7, "some")


def test_svg_writes_a_picture_with_the_name_of_the_program(opened_trees, program, tmp_path, capsys):
    out = tmp_path / "tree.svg"
    assert cli.main(["cache", program, "--svg", str(out)]) == 0
    root = ElementTree.parse(out).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == "Prefix tree of judge.py"
    assert str(out) in capsys.readouterr().err


def test_a_folder_is_refused_before_a_model_is_loaded(opened_trees, tmp_path, capsys):
    assert cli.main(["cache", str(tmp_path)]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert opened_trees == []


def test_a_picture_in_a_folder_that_does_not_exist_is_refused_before_a_model_is_loaded(opened_trees, program, tmp_path, capsys):
    assert cli.main(["cache", program, "--svg", str(tmp_path / "absent" / "tree.svg")]) == 2
    assert "--svg" in capsys.readouterr().err
    assert opened_trees == []


def test_a_picture_that_cannot_be_written_is_bad_input(opened_trees, program, tmp_path, capsys):
    assert cli.main(["cache", program, "--svg", str(tmp_path)]) == 2
    assert "a file that can be written" in capsys.readouterr().err


def test_an_error_in_the_program_has_exit_code_1_and_closes_the_engine(opened_trees, tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text(PROGRAM.replace("forks.join()", "1 / 0"), encoding="utf-8")
    assert cli.main(["cache", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    ((_, backend),) = opened_trees
    assert backend.is_closed

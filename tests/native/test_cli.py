"""The ``sgl`` command, with a fake in the place of the engine."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from sgl_core import __version__
from sgl_core.errors import ModelNotFoundError
from sgl_core.testing import FakeBackend
from sgl_native import cli, engines

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAM = """
import sgl_native as sgl

@sgl.function
def greet(s, name, times=2):
    print("the program prints this")
    s += sgl.user(f"Greet {name} {times} times.")
    s += sgl.assistant(sgl.gen("greeting", max_tokens=8, temperature=0))
"""


@pytest.fixture
def opened(monkeypatch):
    """Configurations of the engines that the command opened; each is a fake that answers "Hello"."""
    configs = []

    def open_fake(config):
        configs.append(config)
        return FakeBackend(reply=lambda ids, params: "Hello")

    monkeypatch.setattr(engines, "open_engine", open_fake)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return configs


@pytest.fixture
def program(tmp_path):
    def write(text=PROGRAM, name="program.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_run_shows_values_and_tokens_of_every_call(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada"]) == 0
    out = capsys.readouterr().out
    assert "Hello" in out
    assert "greeting" in out
    assert all(column in out for column in ("prompt", "cached", "new", "generated", "finish"))


def test_json_is_all_that_stands_on_stdout(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert set(document) == {"variables", "text", "messages", "meta", "stats"}
    assert document["variables"]["greeting"] == "Hello"
    assert document["messages"][-1] == {"role": "assistant", "content": "Hello"}
    assert document["meta"]["greeting"]["finish_reason"] == "stop"
    assert "the program prints this" in err


def test_an_argument_that_is_json_is_taken_as_json(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--arg", "times=3", "--json"]) == 0
    assert "Greet Ada 3 times." in json.loads(capsys.readouterr().out)["text"]


def test_an_argument_that_is_not_json_is_text(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada = Lovelace", "--json"]) == 0
    assert "Greet Ada = Lovelace 2 times." in json.loads(capsys.readouterr().out)["text"]


def test_missing_arguments_are_asked_for_by_name(opened, program, capsys):
    assert cli.main(["run", program()]) == 2
    err = capsys.readouterr().err
    assert "--arg name=..." in err
    assert "times" not in err
    assert opened == []


def test_an_unknown_argument_is_refused_with_the_nearest_name(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "nme=Ada"]) == 2
    assert "Did you mean 'name'?" in capsys.readouterr().err


@pytest.mark.parametrize("assignment", ["name", "=Ada", "two words=Ada"])
def test_an_argument_without_name_or_value_is_refused(opened, program, capsys, assignment):
    assert cli.main(["run", program(), "--arg", assignment]) == 2
    assert "name=value" in capsys.readouterr().err


def test_an_argument_given_twice_is_refused(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--arg", "name=Bob"]) == 2
    assert "each name once" in capsys.readouterr().err


def test_a_file_that_does_not_exist_is_bad_input(opened, tmp_path, capsys):
    assert cli.main(["run", str(tmp_path / "absent.py")]) == 2
    assert "absent.py" in capsys.readouterr().err


def test_a_file_without_a_program_is_bad_input(opened, program, capsys):
    assert cli.main(["run", program("x = 1\n")]) == 2
    assert "@sgl.function" in capsys.readouterr().err


def test_several_programs_without_a_main_are_refused_by_name(opened, program, capsys):
    text = PROGRAM + PROGRAM.replace("greet", "farewell")
    assert cli.main(["run", program(text)]) == 2
    assert "farewell, greet" in capsys.readouterr().err


def test_of_several_programs_main_is_run(opened, program, capsys):
    text = PROGRAM + PROGRAM.replace("greet(", "main(").replace("Greet", "Salute")
    assert cli.main(["run", program(text), "--arg", "name=Ada", "--json"]) == 0
    assert "Salute Ada" in json.loads(capsys.readouterr().out)["text"]


def test_a_program_that_is_only_imported_does_not_count(opened, program, capsys):
    program(PROGRAM.replace("greet", "imported_greet"), name="neighbour_of_the_program.py")
    text = "from neighbour_of_the_program import imported_greet\n" + PROGRAM
    assert cli.main(["run", program(text), "--arg", "name=Ada"]) == 0


def test_an_error_in_the_program_is_one_line_with_its_place_and_exit_code_1(opened, program, capsys):
    text = PROGRAM.replace('print("the program prints this")', "1 / 0")
    assert cli.main(["run", program(text), "--arg", "name=Ada"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    assert "program.py, line 6" in err


def test_a_mistake_that_names_no_line_is_shown_with_the_line_of_the_program(opened, program, capsys):
    path = program("import sgl_native as sgl\n\n\n@sgl.function\ndef main(s):\n    s += 7\n")
    assert cli.main(["run", path]) == 1
    assert capsys.readouterr().err.endswith(f"Convert a value with str(...) first. ({path}:6)\n")
    assert cli.main(["graph", path]) == 1
    assert capsys.readouterr().err.endswith(f"Convert a value with str(...) first. ({path}:6)\n")


def test_the_line_of_the_program_is_not_shown_twice(opened, program, capsys):
    path = program("import sgl_native as sgl\n\n\n@sgl.function\ndef main(s):\n    s.user_end()\n")
    assert cli.main(["run", path]) == 1
    assert capsys.readouterr().err.count(f"{path}:6") == 1


def test_an_error_of_the_model_inside_the_program_has_exit_code_1(monkeypatch, program, capsys):
    monkeypatch.setattr(engines, "open_engine", lambda config: FakeBackend(fail=lambda request: ValueError("no more ink")))
    assert cli.main(["run", program(), "--arg", "name=Ada"]) == 1
    err = capsys.readouterr().err
    assert "no more ink" in err
    assert "Traceback" not in err


def test_an_error_while_the_file_is_read_has_exit_code_1(opened, program, capsys):
    assert cli.main(["run", program("import no_such_module_here\n")]) == 1
    assert "no_such_module_here" in capsys.readouterr().err


def test_debug_shows_the_traceback(opened, program, capsys):
    text = PROGRAM.replace('print("the program prints this")', "1 / 0")
    assert cli.main(["run", program(text), "--arg", "name=Ada", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_model_that_cannot_be_found_has_exit_code_2(monkeypatch, program, capsys):
    def refuse(config):
        raise ModelNotFoundError(f"model: nothing is called {config.model}")

    monkeypatch.setattr(engines, "open_engine", refuse)
    assert cli.main(["run", program(), "--arg", "name=Ada", "--model", "nobody"]) == 2
    assert capsys.readouterr().err == "sgl: error: model: nothing is called nobody\n"


def test_options_of_the_engine_reach_it(opened, program):
    options = ["--dtype", "float32", "--device", "cpu", "--no-cache", "--max-new-tokens", "7"]
    assert cli.main(["run", program(), "--arg", "name=Ada", *options]) == 0
    (config,) = opened
    assert (config.dtype, config.device, config.prefix_cache, config.default_max_new_tokens) == ("float32", "cpu", False, 7)


def test_an_option_out_of_range_is_bad_input(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--max-new-tokens", "0"]) == 2
    assert "default_max_new_tokens" in capsys.readouterr().err


def test_compare_runs_with_and_without_the_cache_on_one_seed(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--compare"]) == 0
    assert [config.prefix_cache for config in opened] == [True, False]
    out = capsys.readouterr().out
    assert "ratio" in out
    assert "texts and values of the two runs: equal" in out


def test_compare_as_json_holds_both_runs(opened, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--compare", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["without_cache"]["variables"] == document["variables"]


def test_the_counters_of_the_engine_are_in_the_document_and_in_the_last_line(monkeypatch, program, capsys):
    class CountingBackend(FakeBackend):
        def stats(self):
            return {"prompt_tokens": 4000, "cached_tokens": 3000, "prefilled_tokens": 1000, "generated_tokens": 50}

    monkeypatch.setattr(engines, "open_engine", lambda config: CountingBackend())
    assert cli.main(["run", program(), "--arg", "name=Ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["prefilled_tokens"] == 1000
    assert cli.main(["run", program(), "--arg", "name=Ada"]) == 0
    assert "4,000 prompt tokens in all: 3,000 cached (75%), 1,000 computed; 50 generated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("example", "variables"),
    [
        ("essay_judge.py", {"judgement", "summary", "grade"}),
        ("few_shot_classification.py", {"label"}),
        ("tip_suggestion.py", {"summary"}),
    ],
)
def test_every_example_runs_without_arguments(opened, capsys, example, variables):
    assert cli.main(["run", str(EXAMPLES / example), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["variables"]) == variables


def test_the_meta_info_of_a_joined_variable_is_a_list_with_a_row_for_each_fork(opened, capsys):
    assert cli.main(["run", str(EXAMPLES / "essay_judge.py")]) == 0
    out = capsys.readouterr().out
    assert all(f"judgement[{index}]" in out for index in range(3))


def test_the_engine_is_closed_also_after_an_error(monkeypatch, program):
    backend = FakeBackend()
    closed = []
    monkeypatch.setattr(backend, "close", lambda: closed.append(True))
    monkeypatch.setattr(engines, "open_engine", lambda config: backend)
    text = PROGRAM.replace('print("the program prints this")', "1 / 0")
    assert cli.main(["run", program(text), "--arg", "name=Ada"]) == 1
    assert closed == [True]


HOSTILE = "\x1b\x07\x9bred\x7f"


@pytest.fixture
def hostile(monkeypatch):
    """The model answers with commands to a terminal."""
    monkeypatch.setattr(engines, "open_engine", lambda config: FakeBackend(reply=lambda ids, params: HOSTILE))


def controls_in(text):
    return sorted({char for char in text if unicodedata.category(char) == "Cc"} - set("\n\t"))


@pytest.mark.parametrize("option", [[], ["--compare"], ["--json"]])
def test_a_model_cannot_command_the_terminal(hostile, program, capsys, option):
    assert cli.main(["run", program(), "--arg", "name=Ada", *option]) == 0
    out = capsys.readouterr().out
    assert controls_in(out) == []
    assert "red" in out


def test_the_document_still_says_exactly_what_the_model_wrote(hostile, program, capsys):
    assert cli.main(["run", program(), "--arg", "name=Ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variables"]["greeting"] == HOSTILE


def test_an_error_that_quotes_the_model_cannot_either(hostile, program, capsys):
    text = PROGRAM + "    raise ValueError(s['greeting'])\n"
    assert cli.main(["run", program(text), "--arg", "name=Ada"]) == 1
    err = capsys.readouterr().err
    assert controls_in(err) == []
    assert "red" in err


NAMESAKES = """
import sgl_native as sgl

@sgl.function
def main(s, backend, seed=5, stream=True):
    s += f"{backend} {seed} {stream} " + sgl.gen("answer", max_tokens=8, temperature=0)
"""


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_parameters_named_like_options_of_run_are_the_programs_own(opened, program, capsys, keyword):
    text = NAMESAKES.replace("def", keyword)
    assert cli.main(["run", program(text), "--arg", "backend=brass", "--seed", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "brass 5 True Hello"
    assert len(opened) == 1


def test_the_seed_of_the_command_is_the_programs_seed_all_the_same(opened, program, capsys):
    text = NAMESAKES.replace("temperature=0", "temperature=1")
    seeds = []
    for seed in ("7", "7", "8"):
        assert cli.main(["run", program(text), "--arg", "backend=brass", "--seed", seed, "--json"]) == 0
        seeds.append(json.loads(capsys.readouterr().out)["meta"]["answer"]["seed"])
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("seed", ["-1", "one", "1.5", str(2**63)])
def test_a_seed_out_of_range_is_wrong_usage(opened, program, capsys, seed):
    with pytest.raises(SystemExit) as exited:
        cli.main(["run", program(), "--arg", "name=Ada", f"--seed={seed}"])
    assert exited.value.code == 2
    assert "expected a whole number from 0 to 2**63 - 1" in capsys.readouterr().err
    assert opened == []


def test_info_as_json_names_versions_device_model_and_cache_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SGL_CACHE_DIR", str(tmp_path))
    assert cli.main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sgl_core"] == __version__
    assert document["python"] == sys.version.split()[0]
    assert document["cache_dir"] == str(tmp_path)
    assert document["device"] in {"cpu", "cuda"}
    assert document["dtype"] in {"float32", "bfloat16"}
    assert document["cpu_threads"] >= 1


def test_info_says_what_to_do_when_the_default_model_is_absent(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SGL_MODEL", str(tmp_path / "absent"))
    assert cli.main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["default_model"] is None
    assert "absent" in document["default_model_missing"]


def test_info_for_people_shows_the_same(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert __version__ in out
    assert "cache" in out


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exited:
        cli.main(["rnu"])
    assert exited.value.code == 2
    err = capsys.readouterr().err
    assert "run" in err
    assert "info" in err


def test_help_and_version_load_no_torch():
    code = "import sys; from sgl_native import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=dict(os.environ)
    )
    assert "run the program in a Python file" in shown.stdout

"""Conventions: names, labels, defaults, packaging, and that nothing of ours is heavy, loud or on the net."""

import importlib.metadata
import inspect
import os
import subprocess
import sys

import dspy
import pytest

import sgl_dspy
from sgl_dspy.lm import SglLM

PUBLIC = {
    "SglLM", "SglEngine", "SglAsyncEngine", "ChatAdapter", "JSONAdapter", "BestOfN", "compile_module", "explain", "run_batch",
    "SglDecisions", "configure",
}  # fmt: skip


def run_python(code):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everything_public_is_there_and_listed():
    assert set(sgl_dspy.__all__) >= PUBLIC
    assert all(getattr(sgl_dspy, name) is not None for name in PUBLIC)


def test_asking_for_our_adapter_loads_no_torch():
    code = "import sys; from sgl_dspy import ChatAdapter, JSONAdapter, BestOfN, compile_module; print(*sys.modules)"
    assert {"torch", "transformers", "litellm"} & set(run_python(code).split()) == set()


def test_a_forgotten_engine_fails_by_name_instead_of_dialling(lm):
    """``sgl`` is no provider of anybody, so a label alone reaches no server."""
    with pytest.raises((dspy.LMError, ImportError)) as raised:
        dspy.LM("sgl/tiny@q8#0123abcd", engine="lm15", cache=False)("Hello")
    assert not isinstance(raised.value, dspy.LMTransportError | dspy.LMTimeoutError)


def test_a_label_is_no_provider_of_lm15(lm):
    from dspy.clients.capabilities import resolve

    with pytest.raises(dspy.lm15.LM15Error):
        resolve(dspy.LM(lm.model, engine="lm15"))


def test_prefixes_that_others_own_are_not_ours(lm):
    assert lm.model.startswith("sgl/")
    assert not lm.model.startswith(("sglang", "claude", "openai"))


def test_a_string_is_no_lm_for_configure():
    dspy.configure(lm="smollm2-135m-instruct")
    with pytest.raises(ValueError, match="string"):
        dspy.Predict("question -> answer")(question="why?")


def test_adapters_have_the_names_that_listeners_look_for():
    assert sgl_dspy.ChatAdapter.__name__ == "ChatAdapter"
    assert sgl_dspy.JSONAdapter.__name__ == "JSONAdapter"
    assert issubclass(sgl_dspy.ChatAdapter, dspy.ChatAdapter)
    assert issubclass(sgl_dspy.JSONAdapter, dspy.JSONAdapter)


def test_runtime_options_are_no_request_options():
    parameters = inspect.signature(SglLM.__init__).parameters
    assert {"backend", "engine", "async_engine", "engine_options"} <= parameters.keys()
    assert parameters["num_retries"].default == 0


def test_the_supported_versions_stand_in_the_package():
    wanted = [line for line in importlib.metadata.requires("sgl-core") or [] if line.startswith("dspy")]
    assert any("dspy<3.5,>=3.4" in line.replace(" ", "") and "dspy" in line for line in wanted)


def test_nothing_is_printed_and_nothing_is_logged(lm, capfd, caplog):
    dspy.Predict("question -> answer", n=2, temperature=1.0)(question="why?")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("sgl")] == []


def test_configure_is_the_sugar_of_the_documents(monkeypatch, engines, model_folder):
    sgl_dspy.configure(str(model_folder))
    assert type(dspy.settings.lm) is SglLM
    assert type(dspy.settings.adapter) is sgl_dspy.ChatAdapter
    assert engines == []

"""What importing the package does, and what it does not."""

import json
import os
import subprocess
import sys

import pytest

import sgl_dspy

MOST_SECONDS = 0.3


def run_python(code):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    return found.stdout.strip()


def test_importing_it_loads_neither_torch_nor_dspy():
    loaded = run_python("import sys, sgl_dspy; print(*sys.modules)").split()
    assert {"torch", "transformers", "numpy", "dspy"} & set(loaded) == set()


def test_making_an_lm_loads_no_torch():
    code = "import sys; from sgl_dspy import SglEngine, SglLM; SglLM(engine=SglEngine()); print(*sys.modules)"
    assert {"torch", "transformers"} & set(run_python(code).split()) == set()


def test_it_adds_little_time_to_dspys_own_import():
    code = """
import json, time
import dspy, dspy.lm15
dspy.LM
start = time.process_time()
from sgl_dspy import SglAsyncEngine, SglEngine, SglLM
print(json.dumps(time.process_time() - start))
"""
    assert min(json.loads(run_python(code)) for _ in range(3)) < MOST_SECONDS


@pytest.mark.parametrize("statement", ["import sgl_dspy", "from sgl_dspy import SglLM"])
def test_without_dspy_the_error_is_the_install_line(statement):
    code = f"""
import sys
sys.modules["dspy"] = None
try:
    {statement}
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert run_python(code) == "MissingExtraError dspy is not installed; run: pip install 'sgl-core[dspy]'"


def test_with_a_dspy_that_is_too_old_the_error_names_the_version():
    code = """
import sys, types
old = types.ModuleType("dspy")
old.__path__ = []
old.__spec__ = types.SimpleNamespace(name="dspy")
sys.modules["dspy"] = old
import sgl_dspy
try:
    sgl_dspy.SglLM
except ImportError as error:
    print(error)
"""
    assert run_python(code) == "dspy 3.4 is not installed; run: pip install 'sgl-core[dspy]'"


def test_nothing_of_ours_warns_of_deprecation():
    code = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
import dspy
dspy.configure_cache(enable_disk_cache=False)
from sgl_core.testing import FakeBackend
from sgl_dspy import SglLM
lm = SglLM(backend=FakeBackend(reply=lambda ids, params: "[[ ## answer ## ]]\\n42\\n\\n[[ ## completed ## ]]"))
dspy.configure(lm=lm)
print(dspy.Predict("question -> answer")(question="why?").answer, len(lm("Hello")))
"""
    assert run_python(code) == "42 1"


@pytest.mark.parametrize("name", sgl_dspy.__all__)
def test_every_public_name_is_there(name):
    assert getattr(sgl_dspy, name).__module__.startswith("sgl_dspy.")


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="SglLm"):
        sgl_dspy.SglLm  # noqa: B018


def test_dir_shows_what_is_loaded_lazily():
    assert set(sgl_dspy.__all__) <= set(dir(sgl_dspy))

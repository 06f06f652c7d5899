"""``import sgl_native as sgl``: what it exports, and what it does only when asked."""

import subprocess
import sys

import pytest

import sgl_core.config
import sgl_core.errors
import sgl_core.language.primitives
import sgl_core.language.sampling
import sgl_core.language.services
import sgl_core.types
import sgl_native as sgl
from sgl_core.testing import FakeBackend


def run_python(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return found.stdout.strip()


def test_every_public_name_of_the_language_is_exported():
    assert {
        name for name in sgl_core.language.__all__ if getattr(sgl, name, None) is not getattr(sgl_core.language, name)
    } == set()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (sgl_core.language.primitives, {"commutative", "image", "separate_reasoning"}),
        (sgl_core.language.sampling, {"to_context"}),
        (sgl_core.language.services, {"flush_cache", "get_server_info"}),
    ],
)
def test_what_sglang_programs_import_is_there(module, names):
    assert names <= set(sgl.__all__)
    assert {name for name in names if getattr(sgl, name) is not getattr(module, name)} == set()


def test_every_error_is_exported():
    classes = {name for name in sgl_core.errors.__all__ if isinstance(getattr(sgl_core.errors, name), type)}
    assert {name for name in classes if getattr(sgl, name, None) is not getattr(sgl_core.errors, name)} == set()


def test_sampling_params_and_engine_config_are_the_core_ones():
    assert sgl.SamplingParams is sgl_core.types.SamplingParams
    assert sgl.EngineConfig is sgl_core.config.EngineConfig


def test_the_engine_is_exported_and_loaded_on_first_use_only():
    code = "import sys, sgl_native as sgl; before = 'torch' in sys.modules; sgl.Engine; print(before, 'torch' in sys.modules)"
    assert run_python(code) == "False True"


def test_a_name_that_does_not_exist_is_an_attribute_error_with_the_nearest_name():
    with pytest.raises(AttributeError, match="selekt"):
        sgl.selekt  # noqa: B018


def test_dir_shows_what_is_loaded_lazily():
    assert "Engine" in dir(sgl)


def test_importing_sets_a_default_backend_that_is_not_made_until_it_is_used():
    code = """
import sgl_native as sgl
import sys
import types

from sgl_core.testing import FakeBackend

class Lease:
    engine = FakeBackend(reply=lambda ids, params: "from the default")

leased = []
registry = types.ModuleType("sgl_core.runtime.registry")
registry.acquire = lambda spec: leased.append(spec) or Lease()
sys.modules["sgl_core.runtime.registry"] = registry

@sgl.function
def program(s):
    s += "Say it: " + sgl.gen("said", max_tokens=32)

none_yet = len(leased)
print(none_yet, program.run()["said"], program.run()["said"], len(leased), leased[0] == sgl.EngineConfig())
"""
    assert run_python(code) == "0 from the default from the default 1 True"


def test_a_ported_program_runs_on_any_backend():
    @sgl.function
    def program(s, question):
        s += sgl.system("You are brief.") + sgl.user(question) + sgl.assistant(sgl.gen("answer", max_tokens=8))

    state = program.run(question="Why?", backend=FakeBackend(reply=lambda ids, params: "Because."))
    assert state["answer"] == "Because."

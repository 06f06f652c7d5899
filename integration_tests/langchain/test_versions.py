"""The adapter on two versions of langchain-core: the installed one, which runs every other test, and a newer one beside it.

``make`` puts the newer one into a folder of its own inside the environment. A process that finds it first runs this room's
tests again, among them those of what only the newer version has; all of them, and the equivalence matrix, in the soak.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.version import VERSION

from sgl_core.errors import SglError

ROOT = Path(__file__).resolve().parents[2]
NEWER_CORE = Path(sys.prefix) / "langchain-core-1.8"
HERE = "integration_tests/langchain"
EQUIVALENCE = "tests/langchain/equivalence"
STANDARD = (f"{HERE}/test_standard_unit.py", f"{HERE}/test_decisions.py")
ROOM = ("tests/langchain", f"--ignore={EQUIVALENCE}")
NOT_OF_A_VERSION = tuple(
    f"--ignore=tests/langchain/{file}" for file in ("test_surface.py", "test_scope.py", "translate/test_prefixes.py")
)
"""They start interpreters of their own, use nothing of LangChain, or try many random texts; the soak runs them, too."""
HANG_S = 800

needs_newer_core = pytest.mark.skipif(
    not NEWER_CORE.is_dir(), reason=f"there is no {NEWER_CORE.name} in the environment; `make clean test` installs it"
)


def run_on_newer_core(*arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(NEWER_CORE), env.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, timeout=HANG_S, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests_on_newer_core(*tests: str) -> str:
    return run_on_newer_core("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests)


@needs_newer_core
def test_the_newer_version_is_the_one_that_is_found_first():
    version = run_on_newer_core("-c", "from langchain_core.version import VERSION; print(VERSION)").strip()
    assert version.startswith("1.8.")
    assert version != VERSION


@needs_newer_core
def test_what_a_version_may_change_passes_on_the_newer_one():
    report = run_tests_on_newer_core(*STANDARD, *ROOM, *NOT_OF_A_VERSION)
    skipped = [line for line in report.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in skipped if "decisions" in line] == []


@needs_newer_core
@pytest.mark.soak
@pytest.mark.parametrize("tests", [ROOM, (EQUIVALENCE,)], ids=["the whole room", "compiled runnables do as plain ones"])
def test_everything_passes_on_the_newer_version(tests):
    assert " passed" in run_tests_on_newer_core(*tests)


def test_on_an_older_version_decisions_are_an_error_with_both_versions_and_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_core.decisions", None)  # importing it fails, as where there is none
    monkeypatch.delitem(sys.modules, "sgl_langchain.decisions", raising=False)
    with pytest.raises(ImportError) as raised:
        importlib.import_module("sgl_langchain.decisions")
    assert isinstance(raised.value, SglError)
    assert str(raised.value) == (
        f"SglDecisions needs langchain-core 1.8 or newer; installed: {VERSION}. Run: pip install 'langchain-core>=1.8,<2'"
    )

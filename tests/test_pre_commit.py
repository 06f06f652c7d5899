"""The hooks that run before a commit: the project's own tools, nothing from elsewhere."""

import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
HOOKS = [hook for repo in CONFIG["repos"] for hook in repo["hooks"]]


def test_every_hook_is_local_and_nothing_is_fetched():
    assert [repo["repo"] for repo in CONFIG["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS} == {"system"}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_a_tool_that_the_makefile_runs(hook):
    tool = shlex.split(hook["entry"])[0]
    assert tool.startswith(".venv/bin/")
    assert f"$(BIN)/{Path(tool).name}" in (ROOT / "Makefile").read_text(encoding="utf-8")

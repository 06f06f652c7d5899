"""The pages for users: links resolve, commands exist, programs compile and use names that exist."""

import ast
import re
from pathlib import Path

import pytest

import sgl_native
from sgl_core.config import EngineConfig
from sgl_core.testing import FakeBackend
from sgl_native import engines

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
WITH_PROGRAMS = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


def name_of(page: Path) -> str:
    return page.name


def programs_in(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page):
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_command_is_a_target(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    commands = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert commands - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_command_names_exists(page):
    named = re.findall(r"(?:examples|benchmarks|docs)/[\w./-]*\w", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=name_of)
def test_every_program_compiles_and_uses_names_that_exist(page):
    for program in programs_in(page):
        names = {
            node.attr
            for node in ast.walk(ast.parse(program))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sgl"
        }
        assert sorted(name for name in names if not hasattr(sgl_native, name)) == []


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/language.md", "docs/compiler.md"])
def test_every_program_runs_on_a_fake_engine(page, monkeypatch):
    monkeypatch.setitem(vars(sgl_native), "Engine", FakeBackend)
    sgl_native.set_default_backend(FakeBackend)
    try:
        for program in programs_in(ROOT / page):
            exec(compile(program, page, "exec"), {})
    finally:
        sgl_native.set_default_backend(engines.default_engine)


def test_every_make_target_is_phony_and_explained():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):(?!=)", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert set(phony.group(1).split()) == targets
    assert set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)) == targets


def test_the_table_of_engine_options_names_options_that_exist():
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8").partition("## Options")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == set(EngineConfig.__dataclass_fields__)

"""What users and plugin authors see of this room: its names, its page, what importing it costs."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sgl_core.plugins
from sgl_core.plugins import errors, hookspecs
from sgl_core.plugins.loading import HOOK_NAMES, PluginSet, check_plugin

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def programs_of_the_page():
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_the_page_holds_every_hook_with_its_exact_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"`{hook}{signature}`" in PAGE.replace(r"\|", "|")


def test_the_page_begins_with_a_complete_plugin_that_the_host_accepts(source_of):
    names: dict[str, object] = {"__name__": "plugin_of_the_page"}
    exec(compile(programs_of_the_page()[0], "docs/plugins.md", "exec"), names)
    plugin = type(sys)("plugin_of_the_page")
    vars(plugin).update(names)
    loaded = check_plugin(source_of(plugin, "acme"), plugin)
    hook = PluginSet({"acme": loaded}).hook
    assert hook.sgl_translate(target=object(), options={}) is None


def test_the_page_names_every_error_of_the_room():
    assert [name for name in errors.__all__ if f"`{name}`" not in PAGE] == []


def test_the_version_on_the_page_is_the_version_of_the_hooks():
    assert f"`API_VERSION` is {hookspecs.API_VERSION}" in PAGE


def test_the_public_names_are_all_there_sorted_and_none_is_public_by_accident():
    names = sgl_core.plugins.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    tree = ast.parse(inspect.getsource(sgl_core.plugins))
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == sorted(names)


def test_the_error_tree_in_the_docstring_is_the_error_tree_of_the_code():
    drawn = re.findall(r"[├└]── (\w+)(?: \((\w+)\))?", errors.__doc__ or "")
    below = [name for name in errors.__all__ if issubclass(getattr(errors, name), errors.PluginError)]
    assert sorted(name for name, _ in drawn) == sorted(set(below) - {"PluginError"})
    assert all(
        issubclass(getattr(errors, name), getattr(__import__("builtins"), builtin)) for name, builtin in drawn if builtin
    )


@pytest.mark.parametrize(("statement", "absent"), [("import sgl_core", "pluggy"), ("import sgl_core.plugins", "torch")])
def test_importing_the_core_loads_no_host_and_the_host_loads_nothing_heavy(statement, absent):
    code = f"{statement}; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert {absent, "torch", "numpy", "transformers", "langchain_core", "dspy", "sgl_native"} & set(loaded) == set()

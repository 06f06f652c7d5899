"""The contract holds for our own three adapters, and notices what breaks it."""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from sgl_core.plugins import AdapterSource, PluginHost
from sgl_core.plugins.discovery import ENTRY_POINT_GROUP
from sgl_core.testing import AdapterContract

ROOT = Path(__file__).resolve().parents[2]


def announced_by_the_project() -> tuple[AdapterSource, ...]:
    """The entry points of pyproject.toml, so that no test depends on when this checkout was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = project["entry-points"][ENTRY_POINT_GROUP]
    return tuple(
        AdapterSource(name, project["name"], "", lambda module=module: importlib.import_module(module))
        for name, module in modules.items()
    )


@pytest.mark.parametrize("name", ["native", "langchain", "dspy"])
class TestOwnAdapters(AdapterContract):
    @pytest.fixture
    def plugin(self, name: str) -> ModuleType:
        return importlib.import_module(f"sgl_{name}.plugin")

    def installed(self) -> tuple[AdapterSource, ...]:
        return announced_by_the_project()


def test_our_own_adapters_come_in_by_the_door_of_strangers():
    host = PluginHost(find=announced_by_the_project, disabled=())
    assert host.available() == ("dspy", "langchain", "native")
    assert host.load("native").name == "native"


@pytest.mark.parametrize(
    ("name", "framework", "extra"),
    [("native", "torch", "runtime"), ("langchain", "langchain_core", "langchain"), ("dspy", "dspy", "dspy")],
)
def test_each_of_our_adapters_says_the_install_line_of_its_framework(name, framework, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError) as caught:
        PluginHost(find=announced_by_the_project, disabled=()).load(name)
    assert str(caught.value) == f"{framework} is not installed; run: pip install 'sgl-core[{extra}]'"


def test_the_contract_notices_an_adapter_of_another_api_version(plugin_of):
    with pytest.raises(RuntimeError, match="version 7"):
        AdapterContract().test_it_says_what_it_is_for_this_version_and_its_hooks_are_known(plugin_of(api_version=7))


def test_the_contract_notices_an_adapter_that_nobody_announces(plugin_of):
    with pytest.raises(AssertionError, match=r"'acme' is announced by \[\]"):
        TestOwnAdapters().test_one_distribution_announces_it_and_the_entry_point_leads_to_the_plugin(plugin_of())


def test_the_contract_notices_a_translator_that_takes_what_is_not_its_own(plugin_of):
    plugin = plugin_of(hooks={"sgl_translate": lambda target: "a program"})
    with pytest.raises(AssertionError):
        AdapterContract().test_foreign_objects_and_foreign_nodes_are_left_to_others(plugin)


def test_the_contract_notices_a_backend_for_a_foreign_scheme(plugin_of):
    plugin = plugin_of(hooks={"sgl_create_backend": lambda target: "a backend"})
    with pytest.raises(AssertionError):
        AdapterContract().test_a_backend_is_opened_for_no_scheme_but_its_own(plugin)


def test_the_contract_notices_an_observer_that_cannot_take_a_failed_request(plugin_of):
    plugin = plugin_of(hooks={"sgl_request_finished": lambda record: record.usage.prompt_tokens})
    with pytest.raises(AttributeError):
        AdapterContract().test_its_observer_takes_requests_that_succeeded_and_requests_that_failed(plugin)


def test_the_contract_notices_a_plugin_whose_import_loads_its_framework(plugin_of, tmp_path, monkeypatch):
    (tmp_path / "eager_plugin.py").write_text("import json.tool\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plugin = plugin_of(requires=("json",))
    plugin.__name__ = "eager_plugin"
    with pytest.raises(AssertionError, match="json"):
        AdapterContract().test_importing_it_loads_no_framework(plugin)

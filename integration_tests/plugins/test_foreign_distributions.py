"""Foreign distributions, built and installed by pip without a network, in interpreters that know nothing else of the tests."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DISTRIBUTIONS = Path(__file__).parent / "distributions"
ROOT = Path(__file__).resolve().parents[2]
ALL = ("good", "broken", "duplicate", "incompatible", "misspelt")
OWN = ("native", "langchain", "dspy")
Installed = Callable[..., str]


def pip_install(source: Path, target: Path) -> None:
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A function from names of distributions to a PYTHONPATH on which they are installed, each in a folder of its own."""
    targets: dict[str, Path] = {}

    def path_of(*names: str) -> str:
        for name in names:
            if name not in targets:
                folder = tmp_path_factory.mktemp(name)
                shutil.copytree(DISTRIBUTIONS / name, folder / "source")  # builds leave files beside their sources
                pip_install(folder / "source", folder / "site")
                targets[name] = folder / "site"
        return os.pathsep.join(str(targets[name]) for name in names)

    return path_of


def run(code: str, path: str, **environ: str) -> str:
    """Run code in a fresh interpreter; what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SGL_", "PYTEST_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**clean, "PYTHONPATH": path, **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def value_of(expression: str, path: str, **environ: str) -> Any:
    """A JSON value that a fresh interpreter computes with a ``host``."""
    code = f"import json\nfrom sgl_core.plugins import get_host\nhost = get_host()\nprint(json.dumps({expression}))"
    return json.loads(run(code, path, **environ))


def error_of_loading(name: str, path: str, **environ: str) -> list[str]:
    """Kind and message of the error that ``load(name)`` raises in a fresh interpreter."""
    code = f"""
import json
from sgl_core.plugins import get_host
try:
    get_host().load({name!r})
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    kind_and_message: list[str] = json.loads(run(code, path, **environ))
    return kind_and_message


def test_adapters_of_all_distributions_are_listed_and_none_is_imported(installed):
    code = """
import sys
from sgl_core.plugins import get_host
print(*get_host().available())
print(*(name for name in sys.modules if name.endswith("_sgl")))
"""
    listed, imported = run(code, installed(*ALL)).splitlines()
    assert {"acme", "acme-cloud", "broken", "future", "misspelt"} <= set(listed.split())
    assert imported == ""


def test_a_good_adapter_works_beside_three_that_do_not(installed):
    path = installed("good", "broken", "incompatible", "misspelt")
    code = """
from sgl_core.plugins import RequestRecord, get_host
host = get_host()
make = host.load("acme").create
from acme_sgl.framework import Blank
program = host.translate(make("Q: How are you?\\nA: ", Blank("answer")))
with host.create_backend("acme://anywhere", {"reply": lambda ids, params: "fine"}) as backend:
    print(program.run(backend=backend)["answer"])
host.request_finished(RequestRecord("one request", "acme"))
import acme_sgl.plugin
print(acme_sgl.plugin.finished)
"""
    assert run(code, path).splitlines() == ["fine", "['one request']"]


def test_what_is_wrong_with_the_others_is_reported_with_distribution_and_cause(installed):
    path = installed("good", "broken", "incompatible", "misspelt")
    expression = (
        "[host.adapters() and 0] and [[e.name, e.distribution, e.version, e.state, str(e.error)] for e in host.report()]"
    )
    report = {name: entry for name, *entry in value_of(expression, path, SGL_DISABLED_ADAPTERS=",".join(OWN))}
    assert report["acme"] == ["acme-sgl", "1.4", "loaded", "None"]
    assert {name: entry[:3] for name, entry in report.items() if entry[2] == "failed"} == {
        "acme-cloud": ["acme-sgl", "1.4", "failed"],
        "broken": ["broken-sgl", "0.3", "failed"],
        "future": ["future-sgl", "9.0", "failed"],
        "misspelt": ["misspelt-sgl", "0.1", "failed"],
    }
    assert "RuntimeError: the shop is on fire" in report["broken"][3]
    assert all(entry[0] in entry[3] for entry in report.values() if entry[2] == "failed")


def test_a_broken_distribution_is_an_error_with_its_name_and_the_cause(installed):
    kind, message = error_of_loading("broken", installed("broken"))
    assert kind == "PluginImportError"
    assert message == "the plugin 'broken' of broken-sgl 0.3 cannot be imported: RuntimeError: the shop is on fire"


def test_an_incompatible_distribution_is_an_error_with_both_numbers(installed):
    kind, message = error_of_loading("future", installed("incompatible"))
    assert kind == "IncompatiblePluginError"
    assert "future-sgl 9.0 was written for version 9 of the plugin API, expected version 1" in message


def test_a_misspelt_hook_is_an_error_with_the_nearest(installed):
    kind, message = error_of_loading("misspelt", installed("misspelt"))
    assert kind == "PluginHookError"
    assert "misspelt-sgl 0.1 implements 'sgl_transalte'" in message
    assert "Did you mean 'sgl_translate'?" in message


@pytest.mark.parametrize("order", [("good", "duplicate"), ("duplicate", "good")])
def test_two_distributions_with_one_name_are_an_error_that_names_both_in_any_order(installed, order):
    kind, message = error_of_loading("acme", installed(*order))
    assert kind == "DuplicateAdapterError"
    assert "'acme' is announced by acme-sgl 1.4 and rival-sgl 2.0" in message


def test_a_missing_extra_of_a_foreign_distribution_is_its_own_install_line(installed):
    kind, message = error_of_loading("acme-cloud", installed("good"))
    assert kind == "MissingPluginExtraError"
    assert message == "acme_cloud_client is not installed; run: pip install 'acme-sgl[cloud]'"


def test_an_installed_adapter_can_be_disabled_by_name(installed):
    path = installed("good")
    assert "acme" not in value_of("host.available()", path, SGL_DISABLED_ADAPTERS="acme")
    kind, message = error_of_loading("acme", path, SGL_DISABLED_ADAPTERS="acme")
    assert kind == "AdapterNotFoundError"
    assert "SGL_DISABLED_ADAPTERS" in message


def test_the_good_distribution_passes_the_contract_for_third_parties(installed, tmp_path):
    test = """
import acme_sgl.plugin
import pytest
from sgl_core.testing import AdapterContract

class TestAcme(AdapterContract):
    @pytest.fixture
    def plugin(self):
        return acme_sgl.plugin
"""
    (tmp_path / "test_acme.py").write_text(test, encoding="utf-8")
    code = f"import pytest; pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', {str(tmp_path)!r}, {str(tmp_path)!r}])"
    assert "6 passed" in run(code, installed("good"), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_the_installed_sgl_core_announces_its_own_adapters():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = importlib.metadata.distribution("sgl-core").entry_points.select(group="sgl_core.adapters")
    announced = {entry.name: entry.value for entry in entries}
    assert announced == project["entry-points"]["sgl_core.adapters"], "sgl-core was installed before; run: pip install -e ."

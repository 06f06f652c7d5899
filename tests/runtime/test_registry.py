"""The engine registry: one engine for one model and one set of options, closed with its last lease."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sgl_core.config import EngineConfig
from sgl_core.errors import EngineShutdown, InvalidArgumentError, ModelNotFoundError
from sgl_core.runtime.registry import acquire


def spec(folder: Path, **options: object) -> EngineConfig:
    return EngineConfig.from_options(model=str(folder), dtype="float32", cache_tokens=256, **options)


def test_equal_specs_share_one_engine_even_from_many_threads(tiny_llama: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: acquire(spec(tiny_llama)), range(8)))
    assert len({id(lease.engine) for lease in leases}) == 1
    for lease in leases[1:]:
        lease.close()
    assert leases[0].engine.generate(["x"])[0].usage.prompt_tokens == 1
    engine = leases[0].engine
    leases[0].close()
    leases[0].close()
    with pytest.raises(EngineShutdown):
        engine.submit("x")
    with pytest.raises(EngineShutdown, match="lease"):
        _ = leases[0].engine


def test_other_options_mean_another_engine(tiny_llama: Path) -> None:
    with acquire(spec(tiny_llama)) as one, acquire(spec(tiny_llama, policy="fcfs")) as two:
        assert one.engine is not two.engine


def test_a_failed_start_leaves_no_entry_behind(tiny_llama: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        acquire(EngineConfig(model="./no-such-folder"))
    with pytest.raises(InvalidArgumentError):
        acquire(EngineConfig(model=str(tiny_llama), cache_tokens=10**12))
    with acquire(spec(tiny_llama)) as lease:
        assert lease.engine.width == 64


def test_importing_the_registry_loads_no_torch() -> None:
    code = "import sys, sgl_core.runtime.registry; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_runtime_says_the_install_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import sgl_native as sgl\n"
        "try: sgl.Engine\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert out.strip() == "MissingExtraError torch is not installed; run: pip install 'sgl-core[runtime]'"

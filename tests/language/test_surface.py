"""What the room shows, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import sgl_core.language
import sgl_core.testing


def test_every_public_name_is_there_and_sorted() -> None:
    for room in (sgl_core.language, sgl_core.testing):
        assert room.__all__ == sorted(room.__all__)
        assert all(hasattr(room, name) for name in room.__all__)


def test_importing_language_and_fakes_loads_nothing_heavy() -> None:
    code = "import sys, sgl_core.language, sgl_core.testing; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert {"torch", "numpy", "transformers", "rich", "pytest", "sgl_core.runtime"}.isdisjoint(loaded)

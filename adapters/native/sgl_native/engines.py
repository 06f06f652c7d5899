"""Where the front end gets its engines: one shared by programs that name no backend, and new ones for the command.

Importing this module loads no torch; the functions do. Tests put a fake in the place of ``open_engine``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig

if TYPE_CHECKING:
    from sgl_core.runtime.engine import Engine

__all__ = ["default_engine", "open_engine"]


def default_engine() -> Backend:
    """Lease the shared engine on the embedded model; it lives until the process ends.

    Raises:
        MissingExtraError: the runtime is not installed.
        ModelNotFoundError: the embedded model is not installed.
    """
    from sgl_core.runtime.registry import acquire

    return acquire(EngineConfig()).engine


def open_engine(config: EngineConfig) -> Engine:
    """Make a new engine, which the caller closes.

    Raises:
        MissingExtraError: the runtime is not installed.
        ModelError: the model cannot be found or used.
    """
    from sgl_core.runtime.registry import engine_class

    return engine_class().from_config(config)

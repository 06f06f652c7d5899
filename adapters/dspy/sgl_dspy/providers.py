"""What DSPy asks to start and stop a model: ``lm.launch()`` and ``lm.kill()``, which optimisers call, too. Called by ``SglLM``."""

from __future__ import annotations

from typing import Any

from dspy.clients.provider import Provider

__all__ = ["SglProvider"]


class SglProvider(Provider):  # type: ignore[misc]  # dspy has no types
    """Loads the engine of an ``SglLM``, and gives it back. It trains nothing."""

    @staticmethod
    def launch(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:  # noqa: ARG004  (DSPy's signature)
        """Load the weights now.

        Raises:
            ModelError: the model cannot be found, read or served.
        """
        _ = lm.engine.backend

    @staticmethod
    def kill(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:  # noqa: ARG004
        """As ``lm.close()``."""
        lm.close()

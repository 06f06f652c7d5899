"""Chains run as programs of the language: the values, errors and order of LangChain, without its machinery for every step.

``RunnableProgram`` is the door; the compiled runnables call it where no callback handler could notice the difference.
"""

from __future__ import annotations

from sgl_langchain.programs.program import RunnableProgram

__all__ = ["RunnableProgram"]

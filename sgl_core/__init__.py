"""sgl-core: run LLM programs locally without computing any prefix twice.

This package is light: importing it loads neither torch nor a framework. Write programs with ``sgl_native``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]

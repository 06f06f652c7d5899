"""``init_chat_model("sgl:...")``: LangChain's table of providers is closed, and this opens it for ``ChatSgl`` on request.

Called by users who choose models by a string. The entry belongs to LangChain's table from then on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_core.language_models import BaseChatModel

from sgl_core.errors import SglError

__all__ = ["RegistrationError", "register_with_langchain"]

_PROVIDER: Final = "sgl"
_HOME: Final = "langchain.chat_models.base"
_TABLE: Final = "_BUILTIN_PROVIDERS"
_DEFAULT_NAMES: Final = frozenset({"", "default"})
_INSTEAD: Final = "pass a ChatSgl object where a model is wanted; create_agent takes one"


class RegistrationError(SglError, ImportError):
    """LangChain is not installed, or its providers are not where they were; says what to do instead."""


def register_with_langchain() -> None:
    """Let ``langchain.chat_models.init_chat_model`` make models of this package, in this process from now on.

    ```python
    from langchain.chat_models import init_chat_model
    from sgl_langchain.registration import register_with_langchain

    register_with_langchain()
    chat = init_chat_model("sgl:default", temperature=0)  # what ChatSgl(temperature=0) makes
    chat = init_chat_model("sgl:/models/mine", max_tokens=64)  # a folder, a .gguf file or a Hugging Face name
    chat = init_chat_model("/models/mine", model_provider="sgl")
    ```

    Calling it again changes nothing.

    Raises:
        RegistrationError: the package ``langchain`` is not installed, or this version of it keeps its providers elsewhere.
    """
    table = _provider_table()
    entry = ("sgl_langchain", "ChatSgl", _create)
    if table.setdefault(_PROVIDER, entry) != entry:
        raise RegistrationError(f"langchain has another provider {_PROVIDER!r} already; {_INSTEAD}")


def _create(*, cls: Callable[..., BaseChatModel], model: str, **options: Any) -> BaseChatModel:
    return cls(**options) if model in _DEFAULT_NAMES else cls(model=model, **options)


def _provider_table() -> dict[str, Any]:
    try:
        home = importlib.import_module(_HOME)
    except ModuleNotFoundError as error:
        if error.name not in {"langchain", "langchain.chat_models", _HOME}:
            raise
        if error.name == "langchain":
            raise RegistrationError("langchain is not installed; run: pip install 'langchain>=1'") from None
        raise RegistrationError(f"this version of langchain has no {_HOME}; {_INSTEAD}") from None
    table = getattr(home, _TABLE, None)
    if not isinstance(table, dict) or not _has_known_entries(table):
        raise RegistrationError(f"this version of langchain keeps its providers in another form; {_INSTEAD}")
    return table


def _has_known_entries(table: Mapping[str, Any]) -> bool:
    """Whether entries are (module, class, function that makes one), as ours is."""
    return bool(table) and all(
        isinstance(entry, tuple) and len(entry) == 3 and isinstance(entry[0], str) and callable(entry[2])
        for entry in table.values()
    )

"""LangChain's standard suite on the embedded model, as far as it needs neither tools nor schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from sgl_core.config import EngineConfig, Environment
from sgl_core.runtime.model_source import resolve_model
from sgl_core.runtime.registry import acquire
from sgl_langchain import ChatSgl

LONG_TEXT = "The tide rises and falls twice a day because the moon pulls the sea. " * 6


@pytest.fixture(scope="module", autouse=True)
def engine_of_the_suite() -> Iterator[None]:
    """The suite makes a model object for each test; they all lease this engine, so its weights are loaded once."""
    with acquire(EngineConfig()):
        yield


class TestChatSgl(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatSgl]:
        return ChatSgl

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 8}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def model_override_value(self) -> str:
        """The embedded model under its path: another name of the same weights."""
        return str(resolve_model(None, Environment(Path("/"), None, frozenset())).path)

    @property
    def supported_usage_metadata_details(self) -> dict[Any, list[Any]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatSgl(max_tokens=4)
        chat.invoke(LONG_TEXT + "Why?")
        message = chat.invoke(LONG_TEXT + "How often?", stream=stream)
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] > 80
        return message

"""The unit part of LangChain's standard suite, as far as it needs neither tools nor schemas."""

from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import ChatModelUnitTests

from sgl_langchain import ChatSgl


class TestChatSglUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatSgl]:
        return ChatSgl

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"SGL_MODEL": "some-model"}, {"api_key": "unused"}, {"model": "some-model"}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

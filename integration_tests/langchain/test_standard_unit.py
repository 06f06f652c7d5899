"""The unit part of LangChain's standard suite."""

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

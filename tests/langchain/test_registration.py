"""``init_chat_model`` with models of this package."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from sgl_core.errors import SglError
from sgl_langchain import ChatSgl
from sgl_langchain.registration import RegistrationError, register_with_langchain

HOME = "langchain.chat_models.base"


@pytest.fixture
def init_chat_model(monkeypatch):
    home = pytest.importorskip(HOME)
    monkeypatch.setattr(home, "_BUILTIN_PROVIDERS", dict(home._BUILTIN_PROVIDERS))
    home._get_chat_model_creator.cache_clear()
    yield home.init_chat_model
    home._get_chat_model_creator.cache_clear()


class WithoutLangChain:
    """Finds what there is, as if one package were not."""

    def find_spec(self, name, path=None, target=None):
        if name == "langchain":
            raise ModuleNotFoundError("No module named 'langchain'", name=name)


def stand_in(monkeypatch, **attributes):
    module = ModuleType(HOME)
    vars(module).update(attributes)
    for name in ("langchain", "langchain.chat_models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, HOME, module)


def test_without_registration_the_provider_is_unknown(init_chat_model):
    with pytest.raises(ValueError, match="sgl"):
        init_chat_model("sgl:default")


def test_a_name_behind_the_provider_is_the_model_and_options_are_passed_on(init_chat_model):
    register_with_langchain()
    chat = init_chat_model("sgl:owner/some-model", temperature=0.5, max_tokens=7)
    assert isinstance(chat, ChatSgl)
    assert (chat.model, chat.temperature, chat.max_tokens) == ("owner/some-model", 0.5, 7)


def test_the_provider_may_be_named_apart_and_paths_may_hold_colons(init_chat_model):
    register_with_langchain()
    assert init_chat_model("/models/a:b", model_provider="sgl").model == "/models/a:b"
    assert init_chat_model("sgl:/models/a:b").model == "/models/a:b"


@pytest.mark.parametrize("name", ["sgl:", "sgl:default"])
def test_no_name_is_the_model_that_chatsgl_has_without_one(init_chat_model, name):
    register_with_langchain()
    assert init_chat_model(name, temperature=0).model == ChatSgl().model


def test_a_model_chosen_by_configuration_is_made_too(init_chat_model):
    register_with_langchain()
    configurable = init_chat_model(configurable_fields=("model", "model_provider"), max_tokens=3)
    chosen = configurable._model({"configurable": {"model": "sgl:mine"}})
    assert (chosen.model, chosen.max_tokens) == ("mine", 3)


def test_registering_again_changes_nothing(init_chat_model):
    register_with_langchain()
    table = dict(sys.modules[HOME]._BUILTIN_PROVIDERS)
    register_with_langchain()
    assert table == sys.modules[HOME]._BUILTIN_PROVIDERS


def test_without_langchain_the_error_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "langchain"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutLangChain(), *sys.meta_path])
    with pytest.raises(ImportError, match="pip install 'langchain") as raised:
        register_with_langchain()
    assert isinstance(raised.value, SglError)


@pytest.mark.parametrize("attributes", [{}, {"_BUILTIN_PROVIDERS": {}}, {"_BUILTIN_PROVIDERS": {"openai": "langchain_openai"}}])
def test_a_table_that_moved_or_has_another_form_is_an_error_that_says_what_to_do(monkeypatch, attributes):
    stand_in(monkeypatch, **attributes)
    with pytest.raises(RegistrationError, match="pass a ChatSgl object"):
        register_with_langchain()


def test_a_provider_of_the_same_name_is_left_in_its_place(monkeypatch):
    table = {"sgl": ("other_package", "ChatOther", print)}
    stand_in(monkeypatch, _BUILTIN_PROVIDERS=table)
    with pytest.raises(RegistrationError, match="already"):
        register_with_langchain()
    assert table["sgl"][0] == "other_package"

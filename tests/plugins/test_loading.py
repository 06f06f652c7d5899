"""What the host says of a plugin that it cannot use: whose it is, what is wrong, what would be right."""

import sys
from types import ModuleType

import pytest

from sgl_core.errors import MissingExtraError, SglError
from sgl_core.plugins import (
    API_VERSION,
    AdapterSource,
    IncompatiblePluginError,
    MissingPluginExtraError,
    PluginHookError,
    PluginImportError,
    hookimpl,
)
from sgl_core.plugins.loading import open_plugin


def test_a_plugin_says_what_it_is(plugin_of, source_of):
    loaded = open_plugin(source_of(plugin_of("acme", requires=("json",), extra="client")))
    assert (loaded.spec.name, loaded.spec.requires, loaded.spec.extra) == ("acme", ("json",), "client")


def test_an_object_can_be_a_plugin_as_well_as_a_module(plugin_of, source_of):
    class Plugin:
        @hookimpl
        def sgl_adapter(self):
            return plugin_of("acme").sgl_adapter()

        @hookimpl
        def sgl_translate(self, target):
            return target

    assert open_plugin(source_of(Plugin())).spec.name == "acme"


def test_a_hook_may_be_implemented_under_another_name(plugin_of, source_of):
    plugin = ModuleType("renamed")
    plugin.who_am_i = hookimpl(lambda: plugin_of("acme").sgl_adapter(), specname="sgl_adapter")
    assert open_plugin(source_of(plugin)).spec.name == "acme"


@pytest.mark.parametrize("error", [RuntimeError("on fire"), SystemExit(3), ImportError("no such part")])
def test_an_import_that_raises_is_reported_with_the_distribution_and_the_cause(error):
    def load():
        raise error

    with pytest.raises(PluginImportError, match=r"'acme' of acme-sgl 1\.2 .*" + type(error).__name__) as caught:
        open_plugin(AdapterSource("acme", "acme-sgl", "1.2", load))
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, ImportError)


def test_a_keyboard_interrupt_during_an_import_is_nobodys_mistake():
    def load():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_plugin(AdapterSource("acme", "acme-sgl", "1.2", load))


def test_a_package_that_names_its_own_missing_extra_is_not_called_broken():
    error = MissingExtraError("langchain", "langchain_core")

    def load():
        raise error

    with pytest.raises(MissingExtraError) as caught:
        open_plugin(AdapterSource("langchain", "sgl-core", "1", load))
    assert caught.value is error


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("sgl_translte", "sgl_translate"), ("request_finished", "sgl_request_finished")]
)
def test_a_misspelt_hook_is_an_error_that_names_it_and_the_nearest(plugin_of, source_of, misspelt, meant):
    plugin = plugin_of("acme", hooks={misspelt: lambda: None})
    with pytest.raises(PluginHookError, match=rf"acme-sgl.*'{misspelt}'.*Did you mean '{meant}'\?"):
        open_plugin(source_of(plugin))


def test_a_misspelt_sgl_adapter_is_named_too(source_of):
    plugin = ModuleType("plugin")
    plugin.sgl_adaptor = hookimpl(lambda: None)
    with pytest.raises(PluginHookError, match=r"'sgl_adaptor'.*Did you mean 'sgl_adapter'\?"):
        open_plugin(source_of(plugin))


def test_a_hook_for_a_newer_core_may_be_marked_optional(plugin_of, source_of):
    plugin = plugin_of("acme")
    plugin.sgl_from_the_future = hookimpl(lambda: None, optionalhook=True)
    assert open_plugin(source_of(plugin)).spec.name == "acme"


def test_a_hook_without_its_mark_is_an_error(plugin_of, source_of):
    plugin = plugin_of("acme", marked=False, hooks={"sgl_translate": lambda target: None})
    with pytest.raises(PluginHookError, match=r"acme-sgl 1\.0 has a function sgl_translate without its mark"):
        open_plugin(source_of(plugin))


def test_an_argument_that_the_hook_does_not_have_is_an_error_that_names_it(plugin_of, source_of):
    plugin = plugin_of("acme", hooks={"sgl_translate": lambda target, colour: None})
    with pytest.raises(PluginHookError, match=r"acme-sgl.*sgl_translate.*colour"):
        open_plugin(source_of(plugin))


def test_an_implementation_may_take_fewer_arguments(plugin_of, source_of):
    hooks = {"sgl_translate": lambda target: None, "sgl_request_finished": lambda: None}
    assert open_plugin(source_of(plugin_of("acme", hooks=hooks))).spec.name == "acme"


def test_a_module_without_hooks_is_no_plugin(source_of):
    with pytest.raises(PluginHookError, match=r"'acme' of acme-sgl 1\.0 has no sgl_adapter\(\), expected a @hookimpl"):
        open_plugin(source_of(ModuleType("empty")))


def test_an_sgl_adapter_that_raises_is_reported_with_its_cause(source_of):
    plugin = ModuleType("plugin")
    plugin.sgl_adapter = hookimpl(lambda: {}["spec"])
    with pytest.raises(PluginHookError, match=r"sgl_adapter\(\) .*acme-sgl.* raised KeyError") as caught:
        open_plugin(source_of(plugin))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_sgl_adapter_that_returns_something_else_is_named_by_type(source_of):
    plugin = ModuleType("plugin")
    plugin.sgl_adapter = hookimpl(lambda: ["acme"])
    with pytest.raises(PluginHookError, match="returned list, expected an AdapterSpec"):
        open_plugin(source_of(plugin))


def test_the_name_of_the_entry_point_and_of_the_adapter_must_be_equal(plugin_of, source_of):
    with pytest.raises(PluginHookError, match=r"'acme' of acme-sgl 1\.0 calls itself 'other'"):
        open_plugin(source_of(plugin_of("other"), "acme", "acme-sgl"))


@pytest.mark.parametrize(("written_for", "upgrade"), [(API_VERSION - 1, "acme-sgl"), (API_VERSION + 1, "sgl-core")])
def test_another_api_version_is_an_error_that_names_both_numbers_and_the_distribution(
    plugin_of, source_of, written_for, upgrade
):
    expected = rf"acme-sgl 1\.0 .*version {written_for} .*version {API_VERSION} .*Upgrade {upgrade}"
    with pytest.raises(IncompatiblePluginError, match=expected):
        open_plugin(source_of(plugin_of("acme", api_version=written_for)))


def test_the_api_version_is_looked_at_before_hooks_that_only_the_other_version_has(plugin_of, source_of):
    plugin = plugin_of("acme", api_version=API_VERSION + 1, hooks={"sgl_from_the_future": lambda: None})
    with pytest.raises(IncompatiblePluginError):
        open_plugin(source_of(plugin))


def test_a_missing_extra_of_ours_is_an_error_with_the_install_line(plugin_of, source_of):
    plugin = plugin_of("langchain", requires=("no_such_framework",), extra="langchain")
    with pytest.raises(MissingExtraError) as caught:
        open_plugin(source_of(plugin, "langchain", "sgl-core"))
    assert str(caught.value) == "no_such_framework is not installed; run: pip install 'sgl-core[langchain]'"


@pytest.mark.parametrize(("extra", "line"), [("client", "pip install 'acme-sgl[client]'"), ("", "pip install acme-sgl")])
def test_a_missing_extra_of_a_stranger_is_an_error_with_the_strangers_install_line(plugin_of, source_of, extra, line):
    plugin = plugin_of("acme", requires=("json", "no_such_framework"), extra=extra)
    with pytest.raises(MissingPluginExtraError) as caught:
        open_plugin(source_of(plugin))
    assert str(caught.value) == f"no_such_framework is not installed; run: {line}"
    assert (caught.value.distribution, caught.value.extra) == ("acme-sgl", extra)
    assert isinstance(caught.value, MissingExtraError)


def test_a_framework_whose_import_is_blocked_counts_as_missing(plugin_of, source_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked_framework", None)
    with pytest.raises(MissingExtraError, match="blocked_framework is not installed"):
        open_plugin(source_of(plugin_of("acme", requires=("blocked_framework",))))


def test_an_import_error_inside_an_installed_framework_passes_through(plugin_of, source_of, tmp_path, monkeypatch):
    (tmp_path / "half_broken_framework.py").write_text("import a_part_that_is_gone\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def create():
        import half_broken_framework

        return half_broken_framework

    spec = open_plugin(source_of(plugin_of("acme", create=create, requires=("half_broken_framework",)))).spec
    with pytest.raises(ModuleNotFoundError, match="a_part_that_is_gone") as caught:
        spec.create()
    assert not isinstance(caught.value, SglError)

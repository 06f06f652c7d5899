"""The host: lists without importing, loads on demand, keeps one plugin's failure from the others, calls hooks."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgl_core.errors import InvalidArgumentError, MissingExtraError
from sgl_core.plugins import (
    AdapterNotFoundError,
    AdapterSource,
    AdapterState,
    DuplicateAdapterError,
    PluginHookError,
    PluginHost,
    PluginImportError,
    RequestRecord,
    get_host,
)
from sgl_core.testing import FakeBackend

RECORD = RequestRecord("0" * 32, "native")


def never_loaded():
    raise AssertionError("the plugin was imported")


def states(host):
    return {entry.name: entry.state for entry in host.report()}


# ---- listing and loading ---------------------------------------------------------------------------------------------
def test_listing_and_reporting_import_nothing(source_of, host_of):
    host = host_of(source_of(None, "b", load=never_loaded), source_of(None, "a", load=never_loaded))
    assert host.available() == ("a", "b")
    assert states(host) == {"a": AdapterState.INSTALLED, "b": AdapterState.INSTALLED}


def test_loading_one_adapter_imports_no_other(plugin_of, source_of, host_of):
    host = host_of(source_of(plugin_of("acme")), source_of(None, "other", load=never_loaded))
    assert host.load("acme").name == "acme"
    assert states(host) == {"acme": AdapterState.LOADED, "other": AdapterState.INSTALLED}


def test_an_adapter_is_imported_once(plugin_of, source_of, host_of):
    imports = []
    plugin = plugin_of("acme")
    host = host_of(source_of(None, load=lambda: imports.append(1) or plugin))
    assert host.load("acme") is host.load("acme")
    assert imports == [1]


def test_an_adapter_that_is_not_installed_is_an_error_with_the_nearest_name(plugin_of, source_of, host_of):
    host = host_of(source_of(plugin_of("langchain"), "langchain"), source_of(plugin_of("dspy"), "dspy"))
    with pytest.raises(
        AdapterNotFoundError, match=r"'langchian' is not installed, .*dspy, langchain.*mean 'langchain'\?"
    ) as caught:
        host.load("langchian")
    assert isinstance(caught.value, LookupError)


def test_without_any_adapter_the_error_says_so(host_of):
    with pytest.raises(AdapterNotFoundError, match="no adapter is installed"):
        host_of().load("acme")


def test_a_name_that_is_no_text_is_refused(host_of):
    with pytest.raises(InvalidArgumentError, match="name: got 3"):
        host_of().load(3)


def test_a_disabled_adapter_is_never_imported(source_of, host_of):
    host = host_of(source_of(None, "acme", load=never_loaded), disabled=("acme",))
    assert host.available() == ()
    assert host.adapters() == ()
    assert states(host) == {"acme": AdapterState.DISABLED}
    with pytest.raises(AdapterNotFoundError, match="'acme' is disabled by SGL_DISABLED_ADAPTERS"):
        host.load("acme")


def test_the_environment_names_the_disabled_adapters(source_of, monkeypatch):
    monkeypatch.setenv("SGL_DISABLED_ADAPTERS", "other, acme")
    host = PluginHost(find=lambda: (source_of(None, "acme", load=never_loaded),))
    assert host.available() == ()


def test_two_distributions_with_one_adapter_name_are_an_error_that_names_both(plugin_of, source_of, host_of):
    host = host_of(
        source_of(None, "acme", "acme-sgl", load=never_loaded),
        source_of(None, "acme", "rival-sgl", load=never_loaded),
        source_of(plugin_of("good"), "good"),
    )
    with pytest.raises(DuplicateAdapterError, match=r"'acme' is announced by acme-sgl 1\.0 and rival-sgl 1\.0"):
        host.load("acme")
    assert host.load("good").name == "good"
    assert [(entry.distribution, entry.state) for entry in host.report()] == [
        ("acme-sgl", AdapterState.FAILED),
        ("rival-sgl", AdapterState.FAILED),
        ("good-sgl", AdapterState.LOADED),
    ]


# ---- a broken neighbour ----------------------------------------------------------------------------------------------
def test_a_broken_neighbour_breaks_nobody_and_is_reported_with_its_distribution_and_cause(
    plugin_of, source_of, host_of, broken_source
):
    host = host_of(broken_source, source_of(plugin_of("acme")))
    assert [spec.name for spec in host.adapters()] == ["acme"]
    (report,) = [entry for entry in host.report() if entry.state is AdapterState.FAILED]
    assert (report.name, report.distribution, report.version) == ("broken", "broken-sgl", "0.3")
    assert isinstance(report.error, PluginImportError)
    assert "the shop is on fire" in str(report.error)


def test_a_broken_neighbour_is_logged_once(plugin_of, source_of, host_of, broken_source, caplog):
    host = host_of(broken_source, source_of(plugin_of("acme")))
    for _ in range(3):
        host.adapters()
        host.translate(object())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "broken-sgl 0.3" in caplog.text


def test_an_adapter_without_its_framework_is_no_reason_for_a_warning(plugin_of, source_of, host_of, caplog):
    host = host_of(source_of(plugin_of("acme", requires=("no_such_framework",))))
    assert host.adapters() == ()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert isinstance(host.report()[0].error, MissingExtraError)


def test_what_the_user_has_tried_and_seen_fail_is_not_tried_again_on_the_side(source_of, host_of, caplog):
    imports = []
    host = host_of(source_of(None, load=lambda: imports.append(1)))
    with pytest.raises(PluginHookError):
        host.load("acme")
    assert host.adapters() == ()
    assert imports == [1]
    assert caplog.records == []


def test_a_failed_load_leaves_no_hook_behind(plugin_of, source_of, host_of):
    hooks = {"sgl_translate": lambda target: "mine", "sgl_typo": lambda: None}
    host = host_of(source_of(plugin_of("acme", hooks=hooks)))
    with pytest.raises(PluginHookError):
        host.load("acme")
    assert host.translate(object()) is None


def test_an_adapter_that_failed_can_be_loaded_when_the_cause_is_gone(plugin_of, source_of, host_of):
    found = [object(), plugin_of("acme")]
    host = host_of(source_of(None, load=lambda: found.pop(0)))
    with pytest.raises(PluginHookError):
        host.load("acme")
    assert states(host) == {"acme": AdapterState.FAILED}
    assert host.load("acme").name == "acme"
    assert states(host) == {"acme": AdapterState.LOADED}


# ---- hooks -----------------------------------------------------------------------------------------------------------
def test_the_first_adapter_that_knows_an_object_translates_it(plugin_of, source_of, host_of):
    asked = []

    def translator(name, answer):
        return plugin_of(name, hooks={"sgl_translate": lambda target, options: asked.append(name) or answer})

    plugins = {"a": translator("a", None), "b": translator("b", "program of b"), "c": translator("c", "program of c")}
    host = host_of(*(source_of(plugin, name) for name, plugin in plugins.items()))
    assert host.translate(object()) == "program of b"
    assert asked == ["a", "b"]


def test_adapters_are_asked_in_the_order_of_their_names_whichever_was_loaded_first(plugin_of, source_of, host_of):
    plugins = {name: plugin_of(name, hooks={"sgl_translate": lambda target, name=name: name}) for name in "abc"}
    for first in "abc":
        host = host_of(*(source_of(plugin, name) for name, plugin in plugins.items()))
        host.load(first)
        assert host.translate(object()) == "a"


def test_target_and_options_reach_the_translator_and_options_are_read_only(plugin_of, source_of, host_of):
    seen = []
    plugin = plugin_of("acme", hooks={"sgl_translate": lambda options, target: seen.append((target, options))})
    host_of(source_of(plugin)).translate("chain", {"width": 3})
    ((target, options),) = seen
    assert (target, dict(options)) == ("chain", {"width": 3})
    with pytest.raises(TypeError):
        options["width"] = 4


def test_what_a_translator_raises_reaches_the_caller(plugin_of, source_of, host_of):
    def refuse(target):
        raise ValueError("a loop in the chain")

    with pytest.raises(ValueError, match="a loop in the chain"):
        host_of(source_of(plugin_of("acme", hooks={"sgl_translate": refuse}))).translate(object())


def test_a_node_is_lowered_by_the_first_adapter_that_knows_it(plugin_of, source_of, host_of):
    plugin = plugin_of("acme", hooks={"sgl_lower": lambda node, builder: [builder, node] if node == "Widget" else None})
    host = host_of(source_of(plugin))
    assert host.lower("Widget", "builder") == ["builder", "Widget"]
    assert host.lower("Gadget", "builder") is None


def test_a_backend_is_opened_by_the_owner_of_its_scheme(plugin_of, source_of, host_of):
    def create(target, options):
        return FakeBackend(**options) if target.startswith("acme://") else None

    host = host_of(source_of(plugin_of("acme", hooks={"sgl_create_backend": create})))
    with host.create_backend("acme://here", {"latency_s": 0.0}) as backend:
        assert isinstance(backend, FakeBackend)
    assert host.create_backend("other://there") is None


@pytest.mark.parametrize(("returned", "named"), [("a string", "builtins.str"), (FakeBackend, "FakeBackend")])
def test_what_is_no_backend_is_refused_by_type(plugin_of, source_of, host_of, returned, named):
    host = host_of(source_of(plugin_of("acme", hooks={"sgl_create_backend": lambda target: returned})))
    with pytest.raises(PluginHookError, match=rf"sgl_create_backend returned \S*{named}, expected a Backend"):
        host.create_backend("acme://here")


# ---- observers -------------------------------------------------------------------------------------------------------
def test_every_observer_sees_a_request_once(plugin_of, source_of, host_of):
    seen = []
    plugins = {name: plugin_of(name, hooks={"sgl_request_finished": lambda record: seen.append(record)}) for name in "ab"}
    host = host_of(*(source_of(plugin, name) for name, plugin in plugins.items()))
    host.adapters()
    host.request_finished(RECORD)
    assert seen == [RECORD, RECORD]


def test_an_observer_that_raises_fails_neither_the_request_nor_other_observers(plugin_of, source_of, host_of, caplog):
    seen = []

    def fail(record):
        raise RuntimeError("the meter is broken")

    bad = plugin_of("a", hooks={"sgl_request_finished": fail})
    good = plugin_of("b", hooks={"sgl_request_finished": lambda record: seen.append(record)})
    host = host_of(source_of(bad, "a"), source_of(good, "b"))
    host.adapters()
    for _ in range(3):
        host.request_finished(RECORD)
    assert seen == [RECORD] * 3
    assert len(caplog.records) == 1
    assert "adapter 'a'" in caplog.text


def test_a_finished_request_loads_nobody(source_of, host_of):
    host = host_of(source_of(None, load=never_loaded))
    host.request_finished(RECORD)
    assert states(host) == {"acme": AdapterState.INSTALLED}


# ---- threads ---------------------------------------------------------------------------------------------------------
def test_eight_threads_that_load_at_once_get_the_same_adapters(plugin_of, source_of, host_of):
    names = [f"adapter{i}" for i in range(4)]
    plugins = {name: plugin_of(name, hooks={"sgl_translate": lambda target: None}) for name in names}
    for _ in range(40):
        host = host_of(*(source_of(plugin, name) for name, plugin in plugins.items()))
        barrier = threading.Barrier(8)

        def load(i, host=host, barrier=barrier):
            barrier.wait(60)
            return [host.load(names[(i + j) % 4]) for j in range(4)]

        with ThreadPoolExecutor(8) as pool:
            loaded = list(pool.map(load, range(8), timeout=60))
        specs = {spec.name: spec for spec in host.adapters()}
        assert all(spec is specs[spec.name] for row in loaded for spec in row)
        assert sorted(specs) == names


def test_a_plugin_may_ask_the_host_while_it_is_imported(plugin_of, source_of):
    def load():
        with ThreadPoolExecutor(1) as pool:  # another thread: a lock around the import would deadlock
            assert pool.submit(host.load, "friend").result(60).name == "friend"
        return plugin_of("acme")

    sources = (source_of(None, load=load), source_of(plugin_of("friend"), "friend"))
    host = PluginHost(find=lambda: sources, disabled=())
    assert host.load("acme").name == "acme"


def test_there_is_one_host_per_process():
    with ThreadPoolExecutor(8) as pool:
        hosts = set(pool.map(lambda _: get_host(), range(8), timeout=60))
    assert len(hosts) == 1


def test_a_source_is_known_by_who_brings_it_not_by_how_it_loads():
    first, second = (AdapterSource("acme", "acme-sgl", "1.0", load) for load in (never_loaded, dict))
    assert first == second

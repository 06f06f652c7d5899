"""What every adapter must do, as a class to subclass: a fixture says which plugin is tested, the tests are here.

::

    class TestMyAdapter(AdapterContract):
        @pytest.fixture
        def plugin(self):
            return my_package.plugin

The distribution must be installed (an editable install will do): its entry point is tested, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType

from sgl_core.plugins import API_VERSION, AdapterSource, AdapterSpec, RequestRecord, installed_adapters
from sgl_core.plugins.loading import LoadedPlugin, PluginSet, check_plugin
from sgl_core.types import FinishReason, Usage

__all__ = ["AdapterContract"]

_IMPORT_TIMEOUT_S = 120.0  # a guard against hanging


class AdapterContract:
    """Subclass it and give it a fixture ``plugin``: the module (or object) that the entry point names."""

    def installed(self) -> Sequence[AdapterSource]:
        """What is installed; override it to test a plugin that is not."""
        return installed_adapters()

    def test_it_says_what_it_is_for_this_version_and_its_hooks_are_known(self, plugin: object) -> None:
        spec = _checked(plugin).spec
        assert isinstance(spec, AdapterSpec)
        assert spec.api_version == API_VERSION

    def test_one_distribution_announces_it_and_the_entry_point_leads_to_the_plugin(self, plugin: object) -> None:
        name = _checked(plugin).spec.name
        found = [source for source in self.installed() if source.name == name]
        assert len(found) == 1, f"{name!r} is announced by {[source.distribution for source in found]}"
        assert found[0].load() is plugin

    def test_importing_it_loads_no_framework(self, plugin: object) -> None:
        module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
        heavy = {*_checked(plugin).spec.requires, "torch", "transformers"}
        code = f"import sys, {module}\nprint(*sys.modules)"
        imported = subprocess.run(  # noqa: S603  # our own interpreter, on the name of a module that is loaded here
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=True
        )
        loaded = sorted(heavy & set(imported.stdout.split()))
        assert not loaded, f"importing {module} loads {', '.join(loaded)}; import them inside create() and inside the hooks"

    def test_foreign_objects_and_foreign_nodes_are_left_to_others(self, plugin: object) -> None:
        hook = PluginSet({"tested": _checked(plugin)}).hook
        assert hook.sgl_translate(target=object(), options={}) is None
        assert hook.sgl_lower(node=object(), builder=object()) is None

    def test_a_backend_is_opened_for_no_scheme_but_its_own(self, plugin: object) -> None:
        hook = PluginSet({"tested": _checked(plugin)}).hook
        assert hook.sgl_create_backend(target="no-such-scheme://nowhere", options={}) is None

    def test_its_observer_takes_requests_that_succeeded_and_requests_that_failed(self, plugin: object) -> None:
        hook = PluginSet({"tested": _checked(plugin)}).hook
        hook.sgl_request_finished(record=RequestRecord("a" * 32, "native", FinishReason.STOP, Usage(3, 1, 2)))
        hook.sgl_request_finished(record=RequestRecord("b" * 32, "native", error=RuntimeError("it failed")))


def _checked(plugin: object) -> LoadedPlugin:
    declare = getattr(plugin, "sgl_adapter", None)
    assert callable(declare), "the plugin has no sgl_adapter()"
    name = getattr(declare(), "name", "")
    return check_plugin(AdapterSource(name, "the distribution under test", "", lambda: plugin), plugin)

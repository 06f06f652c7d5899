"""Installed adapters are read from metadata alone."""

from sgl_core.plugins import PluginHost, installed_adapters


def install(folder, distribution, *entries, version="1.0"):
    """What an installer leaves behind of a distribution: its metadata, here without any code."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("\n".join(["[sgl_core.adapters]", *entries, ""]), encoding="utf-8")


def found_of(*distributions):
    return [(s.name, s.distribution, s.version) for s in installed_adapters() if s.distribution in distributions]


def test_installed_adapters_are_listed_with_their_distributions_without_an_import(tmp_path, monkeypatch):
    install(tmp_path, "zeta-sgl", "zeta = no_such_module_zeta")
    install(tmp_path, "acme-sgl", "acme = no_such_module_acme", "acme-cloud = no_such_module_acme.cloud", version="2.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert found_of("zeta-sgl", "acme-sgl") == [
        ("acme", "acme-sgl", "2.1"),
        ("acme-cloud", "acme-sgl", "2.1"),
        ("zeta", "zeta-sgl", "1.0"),
    ]
    assert {"acme", "acme-cloud", "zeta"} <= set(PluginHost(disabled=()).available())


def test_one_name_of_two_distributions_is_listed_twice(tmp_path, monkeypatch):
    install(tmp_path, "acme-sgl", "acme = no_such_module")
    install(tmp_path, "rival-sgl", "acme = no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    assert found_of("rival-sgl", "acme-sgl") == [("acme", "acme-sgl", "1.0"), ("acme", "rival-sgl", "1.0")]


def test_a_distribution_that_lies_twice_on_the_path_is_listed_once(tmp_path, monkeypatch):
    install(tmp_path / "older", "acme-sgl", "acme = no_such_module", version="1.0")
    install(tmp_path / "newer", "acme-sgl", "acme = no_such_module", version="2.0")
    monkeypatch.syspath_prepend(tmp_path / "older")
    monkeypatch.syspath_prepend(tmp_path / "newer")
    assert found_of("acme-sgl") == [("acme", "acme-sgl", "2.0")]


def test_the_entry_point_leads_to_the_plugin(tmp_path, monkeypatch):
    install(tmp_path, "acme-sgl", "acme = acme_plugin_on_disk")
    (tmp_path / "acme_plugin_on_disk.py").write_text("ANSWER = 42\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (source,) = [source for source in installed_adapters() if source.distribution == "acme-sgl"]
    assert source.load().ANSWER == 42

"""The engine's options and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import InvalidArgumentError, UnknownOptionError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 3),
        ("model", ""),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("policy", "best"),
        ("cache_tokens", 0),
        ("prefill_chunk_tokens", -1),
        ("max_queued", 1.5),
        ("threads", True),
        ("max_running", None),
        ("default_max_new_tokens", 0),
        ("prefix_cache", 1),
        ("deterministic", "yes"),
        ("seed", -1),
    ],
)
def test_a_bad_option_is_named_in_its_error(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        EngineConfig(**{name: value})


def test_an_unknown_option_names_the_nearest_and_is_a_type_error_too() -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean 'prefix_cache'") as caught:
        EngineConfig.from_options(prefix_cach=False)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnknownOptionError) as far:
        EngineConfig.from_options(zzz=1)
    assert "Did you mean" not in str(far.value)


def test_a_path_is_taken_as_its_text() -> None:
    assert EngineConfig(model=Path("some/folder")).model == "some/folder"  # type: ignore[arg-type]


def test_the_environment_is_read_in_one_place_and_a_bad_value_is_an_error() -> None:
    read = Environment.read({"SGL_CACHE_DIR": "/a/b", "SGL_MODEL": "m", "SGL_DISABLED_ADAPTERS": "x, y,"})
    assert read == Environment(Path("/a/b"), "m", frozenset({"x", "y"}))
    assert Environment.read({"XDG_CACHE_HOME": "/c"}).cache_dir == Path("/c/sgl-core")
    assert Environment.read({}).default_model is None
    with pytest.raises(InvalidArgumentError, match=r"SGL_CACHE_DIR.*absolute"):
        Environment.read({"SGL_CACHE_DIR": "relative"})

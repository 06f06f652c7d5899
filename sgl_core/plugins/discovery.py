"""Which adapters are installed: read from the metadata of packages, without importing one of them. The host calls it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["ENTRY_POINT_GROUP", "AdapterSource", "installed_adapters"]

ENTRY_POINT_GROUP: Final = "sgl_core.adapters"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter that a distribution announces.

    Args:
        name: its name in the entry-point group.
        distribution: the distribution that announces it; ``version`` is that distribution's.
        load: imports the plugin and returns it.
    """

    name: str
    distribution: str
    version: str
    load: Callable[[], object] = field(repr=False, compare=False)


def installed_adapters() -> tuple[AdapterSource, ...]:
    """Every adapter that an installed distribution announces, sorted by name and distribution."""
    found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry.dist
        name, version = (distribution.name, distribution.version) if distribution else ("(unknown)", "")
        found.append(AdapterSource(entry.name, name, version, entry.load))
    return tuple(sorted(found, key=lambda source: (source.name, source.distribution)))

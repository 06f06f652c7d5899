"""The plugin. Importing it imports neither LangChain nor the runnables."""

import sys

from sgl_core.plugins import AdapterSpec, hookimpl


@hookimpl
def sgl_adapter():
    return AdapterSpec("harbour", api_version=1, create=create, requires=("langchain_core",))


def create(*ships):
    from harbour_sgl.runnables import Convoy

    return Convoy(*ships)


@hookimpl
def sgl_lower(node, builder):
    kinds = sys.modules.get("harbour_sgl.runnables")
    if kinds is not None and isinstance(node, kinds.Convoy):
        ships = [builder.lower(ship) for ship in node.ships]
        return builder.sequence(node, [*ships, builder.call(node, node.arrived, name="arrived")])
    if kinds is not None and isinstance(node, kinds.Wreck):
        return "a wreck"
    return None

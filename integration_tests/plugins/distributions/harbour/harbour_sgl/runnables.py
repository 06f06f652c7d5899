"""The runnables: ``Convoy`` asks its ships one after another, ``Pilot`` is a step that nobody outside understands."""

from langchain_core.runnables import Runnable


class Convoy(Runnable):
    """Every ship takes what the one before delivered; the log counts the crossings."""

    def __init__(self, *ships):
        self.ships = ships
        self.log = []

    def invoke(self, input, config=None, **kwargs):  # noqa: A002  (LangChain's name)
        cargo = input
        for ship in self.ships:
            cargo = ship.invoke(cargo, config)
        return self.arrived(cargo)

    def arrived(self, cargo):
        self.log.append("arrived")
        return cargo


class Pilot(Runnable):
    """Gives its input back."""

    def invoke(self, input, config=None, **kwargs):  # noqa: A002  (LangChain's name)
        return input


class Wreck(Runnable):
    """A kind for which the plugin gives a wrong answer."""

    def invoke(self, input, config=None, **kwargs):  # noqa: A002  (LangChain's name)
        return input

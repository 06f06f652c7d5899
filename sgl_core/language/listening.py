"""Who wants a stream's text as it comes. Owned by the stream, and used on the dispatcher's thread only."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_core.language.variables import Put, VariableFuture

__all__ = ["Listeners"]


@dataclass(slots=True, eq=False)
class _Listener:
    """One of them; ``is_live``: until the program's body has ended."""

    put: Put
    is_live: bool


class Listeners:
    """The listeners of one stream."""

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        """Nobody yet."""
        self._listeners: list[_Listener] = []

    def add(self, put: Put, *, is_live: bool, text: str, generating: VariableFuture | None) -> None:
        """Tell ``put`` the text so far, what is being generated, and from now on everything.

        Args:
            put: called with each piece, and with None when nothing more comes.
            is_live: more may come until the body has ended, and not only until the stream has nothing to do.
            text: of the stream so far.
            generating: what is under way behind it.
        """
        put(text)
        if generating is not None:
            generating.listen(_without_end(put))
        self._listeners.append(_Listener(put, is_live))

    def put(self, text: str) -> None:
        """More text."""
        for listener in self._listeners:
            listener.put(text)

    def follow(self, future: VariableFuture) -> None:
        """The next text is that of a variable, as it comes."""
        for listener in self._listeners:
            future.listen(_without_end(listener.put))

    def settle(self, *, is_body_done: bool) -> None:
        """The stream has nothing to do now: let those go that nothing more will reach."""
        ended = [listener for listener in self._listeners if is_body_done or not listener.is_live]
        self._listeners = [listener for listener in self._listeners if listener not in ended]
        for listener in ended:
            listener.put(None)


def _without_end(put: Put) -> Put:
    """Pass on text and keep the end of a variable from looking like the end of the stream."""

    def put_text(text: str | None) -> None:
        if text is not None:
            put(text)

    return put_text

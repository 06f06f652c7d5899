"""Replies that were generated here, by where they were generated and what they say.

Generated ids are not the ids that encoding the text would give, and only the generated ones are in the cache. A front end gets a
reply back as text, in the history of the next call; with these ids in its place the whole history is a prefix that is computed
already. Messages need no mark for it: the prompt before a reply and its text say which one it is, whatever became of the message
object in between.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sgl_core.backend import Backend

__all__ = ["Reply", "ReplyMemory", "memory_of", "reply_key"]

_MOST_REPLIES: Final = 4096
_MOST_TOKENS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Reply:
    """Text whose ids are known.

    Args:
        ids: the tokens.
        text: what a reader of the prompt sees. ``text_behind_ids``: its end that the ids do not spell.
    """

    ids: tuple[int, ...]
    text: str
    text_behind_ids: str = ""


def reply_key(text: str, calls: Iterable[tuple[str, Mapping[str, Any]]] = ()) -> str:
    """What a reply says: its text, and names and arguments of the tools that it calls."""
    return json.dumps([text, [[name, arguments] for name, arguments in calls]], sort_keys=True, default=repr)


class ReplyMemory:
    """The last replies of one engine. Thread-safe.

    Args:
        most_replies, most_tokens: beyond these the oldest are forgotten; their history is then encoded like any other text.
    """

    def __init__(self, *, most_replies: int = _MOST_REPLIES, most_tokens: int = _MOST_TOKENS) -> None:
        """Know nothing yet."""
        self._most_replies = most_replies
        self._most_tokens = most_tokens
        self._lock = threading.Lock()
        self._replies: OrderedDict[tuple[int, str], Reply] = OrderedDict()
        self._num_tokens = 0

    def remember(self, prompt_ids: tuple[int, ...], key: str, reply: Reply) -> None:
        """Keep a reply.

        Args:
            prompt_ids: the prompt up to where the assistant's answer begins.
            key: see ``reply_key``.
        """
        place = (hash(prompt_ids), key)  # a clash of hashes finds other ids of the very same text, which is no harm
        with self._lock:
            self._forget(self._replies.pop(place, None))
            self._replies[place] = reply
            self._num_tokens += len(reply.ids)
            while len(self._replies) > self._most_replies or self._num_tokens > self._most_tokens:
                self._forget(self._replies.popitem(last=False)[1])

    def find(self, prompt_ids: tuple[int, ...], key: str) -> Reply | None:
        """The reply that says ``key`` behind this prompt, if it was generated here not long ago."""
        place = (hash(prompt_ids), key)
        with self._lock:
            reply = self._replies.get(place)
            if reply is not None:
                self._replies.move_to_end(place)
            return reply

    def _forget(self, reply: Reply | None) -> None:
        if reply is not None:
            self._num_tokens -= len(reply.ids)


_memories: dict[int, ReplyMemory] = {}
"""By identity of the engine: one of somebody else's need not be hashable, and two that are equal are still two."""
_memories_lock = threading.RLock()  # the garbage collector may end an engine while this very thread is inside


def memory_of(engine: Backend) -> ReplyMemory:
    """The replies of an engine; they go with it. Front ends on one engine share them."""
    key = id(engine)
    with _memories_lock:
        memory = _memories.get(key)
        if memory is not None:
            return memory
        memory = ReplyMemory()
        try:
            weakref.finalize(engine, _forget_engine, key).atexit = False
        except TypeError:  # nobody would tell when it goes, so nothing is kept for it
            return memory
        _memories[key] = memory
        return memory


def _forget_engine(key: int) -> None:
    with _memories_lock:
        _memories.pop(key, None)

"""Forks and joins: what may be asked of them, in a program that runs and in one that is traced, and what they bring back.

What they bring back may be asked for once every fork has done what was submitted to it: by ``ForkGroup.join``, and by the
executor of compiled programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_core.errors import InvalidArgumentError, StreamClosedError
from sgl_core.language.ir import ConstantText, Expr, RawText, RoleBegin, RoleEnd
from sgl_core.language.places import at_user_line
from sgl_core.language.position import Piece
from sgl_core.language.variables import VariableFuture
from sgl_core.types import SegmentKind

if TYPE_CHECKING:
    from sgl_core.language.stream import StreamExecutor

__all__ = [
    "appended_nodes",
    "check_fork",
    "check_join",
    "defined_names",
    "first_error",
    "gather",
    "stream_closed",
    "when_all",
]


def check_fork(n: object) -> None:
    """Refuse what is no number of forks.

    Raises:
        InvalidArgumentError: for ``n``.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidArgumentError("n", n, "an int of at least 1")


def stream_closed() -> StreamClosedError:
    """The error for writing to a stream that was joined or left."""
    return StreamClosedError(at_user_line("this stream has been joined or left; append to the state it was forked from"))


def check_join(mode: object, errors: object) -> None:
    """Refuse what ``join`` does not know.

    Raises:
        InvalidArgumentError: for ``mode`` or ``errors``.
    """
    if mode not in ("gather_variable", "concate_and_append"):
        raise InvalidArgumentError("mode", mode, "gather_variable or concate_and_append")
    if errors not in ("raise", "keep"):
        raise InvalidArgumentError("errors", errors, "raise or keep")


def first_error(streams: Sequence[StreamExecutor], errors: str) -> BaseException | None:
    """What the join raises: the error of the first fork that failed, unless errors are kept.

    The errors of all of them count as seen from now on.
    """
    failed = [stream.error for stream in streams if stream.error is not None]
    for error in failed:
        streams[0].run.mark_seen(error)
    return failed[0] if failed and errors == "raise" else None


def defined_names(streams: Sequence[StreamExecutor]) -> tuple[str, ...]:
    """The variables that any of the forks set, in order."""
    return tuple(dict.fromkeys(name for stream in streams for name in stream.defined))


def gather(streams: Sequence[StreamExecutor], name: str) -> tuple[list[Any], list[Mapping[str, Any]]]:
    """A variable's entries and their meta info, one for each fork."""
    entries = [_entry(stream, name) for stream in streams]
    return [value for value, _ in entries], [meta for _, meta in entries]


def appended_nodes(streams: Sequence[StreamExecutor]) -> tuple[Expr, ...]:
    """The nodes that bring about the forks' own text elsewhere, those left out that failed."""
    return tuple(node for stream in streams if stream.error is None for node in _as_nodes_again(stream.own_pieces()))


def when_all(futures: Iterator[VariableFuture], then: Callable[[], None]) -> None:
    """Call ``then`` once, when all of them are done."""
    for future in futures:
        if not future.done():
            future.add_done_callback(lambda: when_all(futures, then))
            return
    then()


def _entry(stream: StreamExecutor, name: str) -> tuple[Any, Mapping[str, Any]]:
    """What a fork contributes to a gathered variable (its value, its error, or None), and its meta info."""
    future = stream.find(name) if name in stream.defined else None
    if future is None:
        return stream.error, {}
    return (future.result() if future.error is None else future.error), future.meta


def _as_nodes_again(pieces: Sequence[Piece]) -> Iterator[Expr]:
    """The nodes that bring about the same text elsewhere; what was generated is text there."""
    for piece in pieces:
        if piece.kind is SegmentKind.TURN:
            yield RoleBegin(piece.role) if piece.opens else RoleEnd(piece.role)
        elif piece.kind is SegmentKind.RAW:
            yield RawText(piece.text)
        else:
            yield ConstantText(piece.text)

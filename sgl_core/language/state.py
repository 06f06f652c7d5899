"""``s``: what a program's body writes to and reads from.

A thin face on one stream. Writing never waits; reading waits for what is read, and raises the error of the node that should
have made it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

from sgl_core.errors import VariableNotFoundError
from sgl_core.language.feed import aiterate, iterate
from sgl_core.language.group import ForkGroup
from sgl_core.language.ir import Expr, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, as_nodes
from sgl_core.language.joining import check_fork
from sgl_core.language.places import at_user_line, warn_of_special_spellings
from sgl_core.language.position import messages_of, pieces_since, text_of
from sgl_core.language.run import ProgramRun
from sgl_core.language.stream import StreamExecutor
from sgl_core.language.variables import VariableFuture, check_name

__all__ = ["ProgramState"]


class ProgramState:
    """The state of a program, a fork of it, or a function called in it.

    Attributes:
        ret_value: what the function returned; None until it has.
        run, stream: what it is a face of; for this package.
    """

    __slots__ = ("_is_outside", "ret_value", "run", "stream")

    def __init__(self, run: ProgramRun, stream: StreamExecutor, *, is_outside: bool = False) -> None:
        """Made by ``SglFunction`` and ``fork``; ``is_outside``: held by somebody else while the body still runs."""
        self.run = run
        self.stream = stream
        self.ret_value: Any = None
        self._is_outside = is_outside

    # ---- writing -----------------------------------------------------------------------------------------------------
    def __iadd__(self, expr: Expr | str) -> Self:
        """Append text or an expression; returns at once.

        Raises:
            InvalidArgumentError: it is neither.
            StreamClosedError: this is a fork that was joined.
            ProgramError: turns do not nest.
        """
        nodes = as_nodes(expr)
        warn_of_special_spellings(nodes, self.run.codec)
        self.stream.submit(nodes)
        return self

    def set_var(self, name: str, value: Any) -> None:
        """Define a variable."""
        check_name(name)
        self.stream.define(VariableFuture.of(name, value))

    def __setitem__(self, name: str, value: Any) -> None:
        """Define a variable."""
        self.set_var(name, value)

    @contextlib.contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """Capture the text that is appended inside into variable ``name``; it can be read behind the block."""
        check_name(name)
        self.stream.submit((ScopeBegin(name),))
        try:
            yield
        finally:
            self.stream.submit((ScopeEnd(name),))

    def fork(self, n: int = 1) -> ForkGroup:
        """Start ``n`` streams from here; waits for nothing.

        A fork sees the variables that were defined before it, continues an open turn, and is independent from then on.
        """
        check_fork(n)
        return ForkGroup(self, tuple(ProgramState(self.run, stream) for stream in self.stream.fork(n)))

    def begin_call(self, function: str) -> ProgramState:  # noqa: ARG002  (a traced state records the name)
        """The state of a function that is called in this program as a stream of its own; called by ``SglFunction``."""
        return ProgramState(self.run, self.stream.call())

    def copy(self) -> ProgramState:
        """An independent continuation: a fork of one that is never joined. As a context manager it closes at the end."""
        (stream,) = self.stream.fork(1)
        return ProgramState(self.run, stream)

    def __enter__(self) -> Self:
        """This state."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Refuse further writing; reading goes on."""
        self.stream.close()

    # ---- turns -------------------------------------------------------------------------------------------------------
    def system(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Append a system turn around ``expr``; without one, ``with s.system():`` holds it open."""
        return self._turn("system", expr)

    def user(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Append a user turn around ``expr``; without one, ``with s.user():`` holds it open."""
        return self._turn("user", expr)

    def assistant(self, expr: Expr | str | None = None) -> contextlib.AbstractContextManager[None]:
        """Append an assistant turn around ``expr``; without one, ``with s.assistant():`` holds it open."""
        return self._turn("assistant", expr)

    def system_begin(self) -> None:
        """Open a system turn."""
        self.stream.submit((RoleBegin("system"),))

    def system_end(self) -> None:
        """Close the system turn."""
        self.stream.submit((RoleEnd("system"),))

    def user_begin(self) -> None:
        """Open a user turn."""
        self.stream.submit((RoleBegin("user"),))

    def user_end(self) -> None:
        """Close the user turn."""
        self.stream.submit((RoleEnd("user"),))

    def assistant_begin(self) -> None:
        """Open an assistant turn."""
        self.stream.submit((RoleBegin("assistant"),))

    def assistant_end(self) -> None:
        """Close the assistant turn."""
        self.stream.submit((RoleEnd("assistant"),))

    def _turn(self, role: str, expr: Expr | str | None) -> contextlib.AbstractContextManager[None]:
        if expr is None:
            return self._open_turn(role)
        nodes = (RoleBegin(role), *as_nodes(expr, f"s.{role}(...)"), RoleEnd(role))
        warn_of_special_spellings(nodes, self.run.codec)
        self.stream.submit(nodes)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _open_turn(self, role: str) -> Iterator[None]:
        self.stream.submit((RoleBegin(role),))
        try:
            yield
        finally:
            self.stream.submit((RoleEnd(role),))

    # ---- reading -----------------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Any:
        """Wait for a variable.

        Raises:
            VariableNotFoundError: no node of this stream defines it.
            BaseException: the error of the node that defines it, or of one before it.
        """
        future = self._future(name)
        with self._seeing_errors():
            return future.result()

    def get_var(self, name: str) -> Any:
        """Wait for a variable; the same as ``s[name]``."""
        return self[name]

    async def aget(self, name: str) -> Any:
        """Wait for a variable without blocking the loop."""
        future = await self._future_async(name)
        await future.wait_async()
        with self._seeing_errors():
            return future.result()

    def __contains__(self, name: object) -> bool:
        """Whether a variable is defined, be its value there or not."""
        return isinstance(name, str) and self.stream.find(name) is not None

    def variables(self) -> dict[str, Any]:
        """Wait for all variables that have a name."""
        self.sync()
        with self._seeing_errors():
            return {name: future.result() for name, future in self.stream.variables().items()}

    def get_meta_info(self, name: str) -> Any:
        """Wait for a variable, and say how it came about.

        Returns:
            For a gen or select a mapping: prompt_tokens, cached_tokens, completion_tokens, finish_reason, matched_stop,
            seed, queue_s, prefill_s, decode_s. For gen also healed_tokens; logprobs and prompt_logprobs (for each token
            token_id, text, logprob and top, the likeliest tokens likewise; None if not asked for, and for the first token
            of a prompt); grammar_cut (num_tokens, first_index) and verification (equal, first_difference, gap), or None;
            with ``dtype`` raw_text. For select also choices, choices_method, scores (by that method), normalized_scores
            (softmax of them), token_logprobs, sum_logprobs, mean_logprobs, unconditional_logprobs. After ``join`` a list
            of those. Empty for other variables.
        """
        future = self._future(name)
        with self._seeing_errors():
            future.result()
        return future.meta

    def text(self) -> str:
        """Wait for everything appended so far and return it as the model sees it, control tokens spelled out."""
        self._finish()
        return text_of(pieces_since(self.stream.position.trail))

    def messages(self) -> list[dict[str, str]]:
        """Like ``text``, as ``{"role", "content"}`` for each turn; text outside turns is left out."""
        self._finish()
        return messages_of(pieces_since(self.stream.position.trail))

    def sync(self) -> None:
        """Wait for everything appended so far (after ``run(stream=True)``: for the whole program); raises nothing."""
        if self._is_outside:
            self.run.ended.wait()
        self.stream.barrier().result()

    def abort(self) -> None:
        """End the program soon: what is in flight is aborted, and everything after it ends with RequestAborted.

        May be called from any thread, while the program runs; no effect on what has ended.
        """
        self.run.cancel()

    def error(self) -> BaseException | None:
        """Wait as ``sync`` does and return what failed this stream (after ``run(stream=True)``: the program), or None.

        The error then counts as read.
        """
        self.sync()
        error = (self.run.body_error if self._is_outside else None) or self.stream.error
        if error is not None:
            self.run.mark_seen(error)
        return error

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Yield the state's text from its beginning, or a variable's, as it is generated.

        Raises:
            BaseException: at the end, the error that ended it.
        """
        if var_name is None:
            yield from iterate(partial(self.stream.listen, is_live=self._is_outside))
            self._finish()
        else:
            future = self._future(var_name)
            yield from iterate(future.listen)
            with self._seeing_errors():
                future.result()

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """Like ``text_iter``, without blocking the loop.

        Args:
            var_name: the variable; None is the whole state.
            return_meta_data: with a variable, yield ``(text, meta)``; meta is empty until the last pair, which is
                ``("", meta)``.
        """
        if var_name is None:
            async for piece in aiterate(partial(self.stream.listen, is_live=self._is_outside)):
                yield piece
            await asyncio.to_thread(self._finish)
            return
        future = await self._future_async(var_name)
        async for piece in aiterate(future.listen):
            yield (piece, {}) if return_meta_data else piece
        with self._seeing_errors():
            future.result()
        if return_meta_data:
            yield "", future.meta

    def _future(self, name: str) -> VariableFuture:
        if self._is_outside:
            self.run.await_definition(self.stream, name)
        future = self.stream.find(name)
        if future is None:
            if self._is_outside and self.run.body_error is not None:
                raise self.run.body_error
            known = ", ".join(sorted(self.stream.variables())) or "none"
            raise VariableNotFoundError(at_user_line(f"variable {name!r} is not defined in this stream; defined: {known}"))
        return future

    async def _future_async(self, name: str) -> VariableFuture:
        if self._is_outside and self.stream.find(name) is None:
            await asyncio.to_thread(self.run.await_definition, self.stream, name)
        return self._future(name)

    def _finish(self) -> None:
        """Wait as ``sync`` does, and raise this stream's error."""
        error = self.error()
        if error is not None:
            raise error

    @contextlib.contextmanager
    def _seeing_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.run.mark_seen(error)
            raise

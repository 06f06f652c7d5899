"""One run of a program: its backend, seed and defaults, all of its streams, and what is still to be told to its caller.

Owns the list of streams, the cancellation and the record of which errors the user has seen.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sgl_core.backend import Backend, TextCodec
from sgl_core.errors import InvalidArgumentError, RequestAborted
from sgl_core.ids import new_id
from sgl_core.language.dispatcher import post
from sgl_core.language.joining import when_all
from sgl_core.language.places import warn_user
from sgl_core.language.position import Position
from sgl_core.language.sampling import OPTION_NAMES, combined_params
from sgl_core.language.stream import StreamExecutor
from sgl_core.language.textonly import TextOnlyCodec
from sgl_core.types import SEED_BITS, SamplingParams

if TYPE_CHECKING:
    from sgl_core.language.state import ProgramState

__all__ = ["CURRENT_STATE", "PROGRAM_OPTIONS", "RUN_OPTIONS", "ProgramRun", "check_seed", "derived_seed"]

PROGRAM_OPTIONS: Final = frozenset({"backend", "namespace", "seed"})
"""What ``run`` and its kin know about a program as a whole."""
RUN_OPTIONS: Final = PROGRAM_OPTIONS | OPTION_NAMES
"""What ``run`` and its kin know."""
CURRENT_STATE: Final[ContextVar[ProgramState | None]] = ContextVar("sgl_current_state", default=None)
"""The state of the innermost function body that runs in this context."""


def derived_seed(seed: int, *path: int) -> int:
    """A seed for one place in a program, well mixed and the same on every machine."""
    text = ",".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def check_seed(seed: object) -> None:
    """Refuse what is no program seed.

    Raises:
        InvalidArgumentError: it is no int, or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << SEED_BITS:
        raise InvalidArgumentError("seed", seed, f"an int in [0, 2**{SEED_BITS}), or None")


class ProgramRun:
    """See the module.

    Args:
        backend: where requests go; borrowed.
        seed: the program's seed; None draws one.
        namespace: prefixes are shared within a namespace only.
        defaults: sampling options for every gen that does not set them, by ``SamplingParams`` names.
        start: where the root stream begins; None is an empty stream.
        timeout_s: seconds from now after which its generations end with DeadlineExceeded.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        seed: int | None = None,
        namespace: str | None = None,
        defaults: Mapping[str, Any],
        start: Position | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Open the root stream."""
        if seed is not None:
            check_seed(seed)
        if namespace is not None and not isinstance(namespace, str):
            raise InvalidArgumentError("namespace", type(namespace).__name__, "a str, or None")
        self.backend = backend
        self.codec: TextCodec = backend.codec or TextOnlyCodec()
        self.seed = backend.new_seed() if seed is None else seed
        self.namespace = namespace
        self.program_id = new_id()
        self.body_done = threading.Event()
        self.ended = threading.Event()  # the body and all streams; somebody else may be waiting for it
        self.body_error: BaseException | None = None
        self.cancelled: RequestAborted | None = None
        self._defaults = defaults
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._announced = threading.Condition(self._lock)
        self._num_waiting = 0
        self._streams: list[StreamExecutor] = []
        self._seen: dict[int, BaseException] = {}  # by id; kept alive, so that ids stay theirs
        self._cut: str | None = None
        self._stop: tuple[int, BaseException] | None = None
        self.root = StreamExecutor(self, ())
        self.root.begin(Position() if start is None else start)

    # ---- for its streams ---------------------------------------------------------------------------------------------
    def register(self, stream: StreamExecutor) -> None:
        """Add a stream; it is waited for at the end."""
        with self._lock:
            self._streams.append(stream)

    def params_for(self, options: Mapping[str, Any], path: tuple[int, ...], index: int) -> SamplingParams:
        """The sampling parameters of the ``index``-th generation of the stream at ``path``."""
        # The length keeps paths apart: generation 2 of stream (1,) is not generation 1 of stream (1, 2).
        return combined_params(self._defaults, options, derived_seed(self.seed, len(path), *path, index))

    def remaining_s(self) -> float | None:
        """Seconds that are left to it, at least a little, so that it is the backend that says they are over; None is any time."""
        return None if self._deadline is None else max(1e-3, self._deadline - time.monotonic())

    def is_greedy(self, options: Mapping[str, Any]) -> bool:
        """Whether a gen with these options is greedy in this run."""
        return bool(options.get("temperature", self._defaults.get("temperature")) == 0)

    def stopped_before(self, order: int) -> BaseException | None:
        """The error that ended a compiled body before it came to its node number ``order``, if one did."""
        if self._stop is None or order <= self._stop[0]:
            return None
        return self._stop[1]

    def stop(self, order: int, error: BaseException) -> None:
        """A compiled body fails at its node number ``order``: what comes behind is not run."""
        self._stop = order, error

    def note_cut(self, name: str) -> None:
        """Remember the first variable that ended at the backend's default budget."""
        self._cut = self._cut or name

    def announce(self) -> None:
        """Wake whoever waits for a variable that the body has yet to define."""
        if self._num_waiting:
            with self._announced:
                self._announced.notify_all()

    # ---- for states --------------------------------------------------------------------------------------------------
    def await_definition(self, stream: StreamExecutor, name: str) -> None:
        """Wait until ``stream`` defines ``name`` or the body has ended."""
        with self._announced:
            self._num_waiting += 1
            try:
                self._announced.wait_for(lambda: stream.find(name) is not None or self.body_done.is_set())
            finally:
                self._num_waiting -= 1

    def mark_seen(self, error: BaseException) -> None:
        """The user has this error; it is not raised again at the end."""
        self._seen[id(error)] = error

    # ---- for SglFunction ---------------------------------------------------------------------------------------------
    def end_body(self, error: BaseException | None = None) -> None:
        """The body has returned or raised."""
        self.body_error = error
        self.body_done.set()
        with self._announced:
            self._announced.notify_all()
        post(self.root.settle_listeners)

    def wait(self) -> None:
        """Wait until every stream has done what was submitted."""
        for stream in self._each_stream():
            stream.barrier().result()

    async def wait_async(self) -> None:
        """Like ``wait``, without blocking the loop."""
        for stream in self._each_stream():
            await stream.barrier().wait_async()

    def when_streams_end(self, then: Callable[[], None]) -> None:
        """Call ``then`` once every stream has done what was submitted."""
        when_all((stream.barrier() for stream in self._each_stream()), then)

    def cancel(self) -> None:
        """Abort everything in flight and run nothing more; readers get RequestAborted."""

        def cancel_now() -> None:  # on the dispatcher, so no stream is between its check and its submit
            self.cancelled = RequestAborted("the program was cancelled")
            for stream in self._each_stream():
                stream.abort()

        post(cancel_now)

    def raise_unread(self) -> None:
        """Raise the first error that nobody has seen, by order of streams; warn of an output cut short."""
        for stream in self._each_stream():
            if stream.error is not None and id(stream.error) not in self._seen:
                raise stream.error
        if self._cut is not None:
            warn_user(
                f"variable {self._cut!r} ended at the default budget of "
                f"{self.backend.capabilities.default_max_new_tokens} tokens; set max_tokens=... to choose one"
            )

    def _each_stream(self) -> tuple[StreamExecutor, ...]:
        with self._lock:
            return tuple(self._streams)

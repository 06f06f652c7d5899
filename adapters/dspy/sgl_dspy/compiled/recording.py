"""What one run of a compiled module did: which predictors were asked, with what prompts, and what came back.

DSPy's callbacks tell a ``Recorder``, from whatever thread or task a predictor is called in. A ``Recording`` is for ``explain`` and
for drawings, see ``recorded_graph``; it is never run again, as the program's own Python decides what comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import dspy
from dspy.signatures.signature import ensure_signature
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

__all__ = ["FirstRun", "RecordedCall", "Recorder", "Recording"]

_MOST_CALLS: Final = 256
"""Of one run; what comes behind them is like what came before, or too much to look at."""

Message = Mapping[str, Any]


@dataclass(slots=True)
class RecordedCall:
    """One call of a predictor.

    Args:
        predictor: its name in the program; that of its signature if the program does not hold it.
        signature: it was called with.
        inputs: values by field.
        prompts: messages of each call of the LM: one, and another one where an adapter had to ask again.
        outputs: values by field, for each candidate; empty until it is done, or if it failed.
    """

    predictor: str
    signature: Any
    inputs: Mapping[str, Any]
    prompts: list[tuple[Message, ...]] = field(default_factory=list)
    outputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of a program.

    Args:
        program: the name of its class.
        arguments: of the run.
        calls: in the order in which they began.
    """

    program: str
    arguments: Mapping[str, Any]
    calls: tuple[RecordedCall, ...]


class Recorder(BaseCallback):  # type: ignore[misc]  # dspy has no types
    """Listens to one run. Thread-safe.

    Args:
        predictors: of the program, by name. Copies of them, as DSPy's searches make, are known by their signatures.
    """

    def __init__(self, predictors: Mapping[str, Any]) -> None:
        """Nothing was heard."""
        self._names = {id(one): name for name, one in predictors.items()}
        self._names_by_task = {_task_of(one.signature): name for name, one in predictors.items()}
        self._lock = threading.Lock()
        self._by_id: dict[str, RecordedCall] = {}

    def calls(self) -> tuple[RecordedCall, ...]:
        """What was heard so far, of predictors that asked an LM."""
        with self._lock:
            return tuple(call for call in self._by_id.values() if call.prompts)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A predictor is called."""
        if not isinstance(instance, dspy.Predict):
            return
        given = inputs.get("kwargs") or {}
        signature = ensure_signature(given.get("signature", instance.signature))
        name = self._names.get(id(instance)) or self._names_by_task.get(_task_of(signature), signature.signature)
        values = {key: value for key, value in given.items() if key in signature.input_fields}
        with self._lock:
            if len(self._by_id) < _MOST_CALLS:
                self._by_id[call_id] = RecordedCall(name, signature, values)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002  (DSPy's signature)
        """An LM is called; by a predictor, if it is the one around it."""
        messages = inputs.get("messages")
        with self._lock:
            call = self._by_id.get(ACTIVE_CALL_ID.get() or "")
            if call is not None and messages:
                call.prompts.append(tuple(messages))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:  # noqa: ARG002
        """A predictor has its prediction."""
        with self._lock:
            call = self._by_id.get(call_id)
            if call is not None and isinstance(outputs, dspy.Prediction):
                call.outputs = tuple(dict(one.items()) for one in outputs.completions)


class FirstRun:
    """The recording of a compiled module's first run that succeeds; copies and pickles of it have not run yet."""

    def __init__(self) -> None:
        """No run."""
        self.recording: Recording | None = None
        self._lock = threading.Lock()
        self._is_claimed = False

    def __reduce__(self) -> tuple[type[FirstRun], tuple[()]]:
        """A new one."""
        return FirstRun, ()

    @contextmanager
    def recorded(self, module: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Listen to what happens inside, unless another run is, or was, listened to."""
        with self._lock:
            is_mine = not self._is_claimed
            self._is_claimed = True
        if not is_mine:
            yield
            return
        found = module.named_sub_modules(type_=dspy.Predict)
        recorder = Recorder({name.removeprefix("self."): predictor for name, predictor in found})
        try:
            with dspy.context(callbacks=[*(dspy.settings.callbacks or []), recorder]):
                yield
        except BaseException:
            with self._lock:
                self._is_claimed = False
            raise
        self.recording = Recording(type(module).__name__, dict(arguments), recorder.calls())


def _task_of(signature: Any) -> tuple[str, str]:
    return signature.signature, signature.instructions

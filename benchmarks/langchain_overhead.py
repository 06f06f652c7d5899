"""What compiling costs where it saves nothing: processor time of LangChain's own code and of ours, without a model.

``prompt | chat | parser`` on a backend that answers at once, plain and compiled in both modes, one call at a time and in batches.
The ways take turns, and whose turn is first rotates. The time is that of the whole process, threads included.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_workloads import Chain
from rich.console import Console
from rich.progress import track

from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, compile_runnable

__all__ = ["PLAIN", "measure_overhead"]

_BATCH_SIZE = 64
PLAIN = "plain"
_WARM_UPS = 5


def measure_overhead(num_calls: int, num_batches: int) -> dict[str, Any]:
    """Milliseconds of processor time a call, by way: medians, quartiles, and what each adds to plain LangChain.

    Args:
        num_calls: single calls of each way.
        num_batches: batches of each way; their figures are for one input.
    """
    inputs = [{"question": f"What is the answer to question {number}?"} for number in range(_BATCH_SIZE)]
    with FakeBackend(lambda _ids, _params: "forty-two") as backend:
        prompt = ChatPromptTemplate([("system", "You answer in one word."), ("human", "{question}")])
        chain: Chain = prompt | ChatSgl(engine=backend, max_tokens=16) | StrOutputParser()
        ways: dict[str, Chain] = {
            PLAIN: chain,
            "compiled, scope": compile_runnable(chain, mode="scope"),
            "compiled, program": compile_runnable(chain, mode="program"),
        }
        invoked = _measure(ways, lambda way: [way.invoke(inputs[0])], backend, num_calls, "single calls")
        batched = _measure(ways, lambda way: way.batch(inputs), backend, num_batches, f"batches of {_BATCH_SIZE}")
    return {"invoke": invoked, "batch": batched, "batch_size": _BATCH_SIZE}


def _measure(
    ways: dict[str, Chain], work: Callable[[Chain], list[str]], backend: FakeBackend, rounds: int, title: str
) -> dict[str, Any]:
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    prompts: dict[str, set[int]] = {name: set() for name in names}
    outputs: set[tuple[str, ...]] = set()
    gc.collect()
    for number in track(range(-_WARM_UPS, rounds), f"processor time of {title}", console=Console(stderr=True), transient=True):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            backend.requests.clear()
            began = time.process_time()
            answered = work(ways[name])
            spent = time.process_time() - began
            outputs.add(tuple(answered))
            prompts[name].add(sum(len(request.input_ids) for request in backend.requests))
            if number >= 0:
                seconds[name].append(spent / len(answered))
    plain = statistics.median(seconds[PLAIN])
    return {
        "rounds": rounds,
        "identical": len(outputs) == 1 and len(set().union(*prompts.values())) == 1,
        "ways": {name: _summary(each, plain) for name, each in seconds.items()},
    }


def _summary(seconds: list[float], plain: float) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"cpu_ms": 1e3 * middle, "lower_ms": 1e3 * low, "upper_ms": 1e3 * high, "added_ms": 1e3 * (middle - plain)}

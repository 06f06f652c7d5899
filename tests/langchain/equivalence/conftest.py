"""Fixtures of this room: the same chain plain and compiled, each in a world of its own, and how they are compared.

A ``World`` is an engine without a model whose answer is a function of the prompt, with models on it and a log in which the
chain's own functions write what they saw. ``Sides.agree`` does the same with all of them and compares what came out, what
was logged and which requests reached the engine.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from sgl_core.errors import EngineStepError
from sgl_core.testing import FakeBackend
from sgl_core.types import GenRequest, SamplingParams
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.compiled import compile_runnable

HANG_S = 60
MODES = ("scope", "program", "auto")
CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")
_WORDS = ("tide", "harbour", "rope", "lantern", "gull", "anchor", "mist", "keel", "buoy", "sail", "wharf", "net", "oar", "reef")


# ---- answers ---------------------------------------------------------------------------------------------------------
def word_for(*key: object) -> str:
    return _WORDS[hashlib.sha256(repr(key).encode()).digest()[0] % len(_WORDS)]


def instance(schema: Mapping[str, Any], key: object, root: Mapping[str, Any] | None = None) -> Any:
    """Some value that the schema takes, decided by ``key``."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return instance(target, key, root)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return instance(schema[union][0], key, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][len(word_for(key)) % len(schema["enum"])]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: instance(part, (key, name), root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}), (key, n), root) for n in range(2)]
    return {"string": word_for(key), "integer": len(word_for(key)), "number": 0.5, "boolean": True, "null": None}[kind]


def answer(ids: tuple[int, ...], params: SamplingParams) -> str:
    """The one text for a prompt: never of time, thread or seed."""
    key = (ids, params.temperature)
    asked = bytes(token for token in ids if token < 256).decode(errors="replace")
    if params.choices is not None:
        return params.choices[len(word_for(key)) % len(params.choices)]
    if params.json_schema is not None:
        schema = params.json_schema
        if isinstance(schema, type):
            schema = schema.model_json_schema()
        return json.dumps(instance(json.loads(schema) if isinstance(schema, str) else schema, key))
    if "as JSON" in asked:
        return json.dumps({"name": word_for(key), "size": len(word_for(key)), "parts": [word_for(key, 1), word_for(key, 2)]})
    if "as a list" in asked:
        return ", ".join(word_for(key, n) for n in range(3))
    return "The " + " ".join(word_for(key, n) for n in range(4)) + "."


# ---- worlds ----------------------------------------------------------------------------------------------------------
class World:
    """One engine, models on it, the inputs of a chain, and the log of what its functions saw.

    ``is_limited`` is for a test to say that its caller names a ``max_concurrency``.

    A prompt with "explode" in it ends with an error of the engine, one with "flaky" does so the first time.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = copy.deepcopy(inputs)
        self.log: list[Any] = []
        self.caller = CALLER
        self.is_limited = False
        self._lock = threading.Lock()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self.engine = FakeBackend(answer, fail=self._failure)

    @cached_property
    def chat(self) -> ChatSgl:
        return ChatSgl(engine=self.engine, max_tokens=200)

    @cached_property
    def llm(self) -> SglLLM:
        return SglLLM(engine=self.engine, max_tokens=200)

    def saw(self, label: str, value: object) -> None:
        """Log a call: which of the inputs it got, as the very object, and which caller it sees."""
        which = next((number for number, one in enumerate(self.inputs) if one is value), None)
        with self._lock:
            self.log.append((label, which, CALLER.get()))

    def note(self, *entry: object) -> None:
        with self._lock:
            self.log.append(entry)

    def requests(self) -> list[str]:
        """What reached the engine, in an order of its own: a batch sends in any."""
        fields = ((r.input_ids, dataclasses.replace(r.params, seed=None), r.namespace) for r in self.engine.requests)
        scores = ((r.input_ids, r.continuations, r.namespace) for r in self.engine.scores)
        return sorted(map(repr, (*fields, *scores)))

    def _failure(self, request: GenRequest) -> BaseException | None:
        asked = bytes(token for token in request.input_ids if token < 256)
        with self._lock:
            self._seen[request.input_ids] += 1
            is_first = self._seen[request.input_ids] == 1
        if b"explode" in asked or (b"flaky" in asked and is_first):
            return EngineStepError("the step failed")
        return None


# ---- what counts as the same -----------------------------------------------------------------------------------------
_FRESH = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # runs and messages
    r"|0x[0-9a-f]{6,}"  # addresses
    r"|call_\w+"  # calls of tools
)


def masked(text: str) -> str:
    """Without what is new at every run."""
    return _FRESH.sub("<fresh>", text)


def plain_data(value: Any, *, is_ordered: bool = True) -> Any:
    """A value as data that compares: everything in it but ids, seeds and addresses.

    Args:
        is_ordered: the order of the keys of a dict counts, too.
    """

    def inner(one: Any) -> Any:
        return plain_data(one, is_ordered=is_ordered)

    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        items = [(key, inner(one)) for key, one in value.items() if key != "seed"]
        return ("mapping", items if is_ordered else sorted(items, key=repr))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value).__name__, [inner(one) for one in value])
    if isinstance(value, BaseException):
        return ("error", type(value).__qualname__, masked(str(value)))
    if isinstance(value, BaseMessage | PromptValue | Document | Generation | LLMResult | BaseModel):
        return (type(value).__name__, inner(dict(value)))
    return value if value is None or isinstance(value, bool | int | float) else masked(repr(value))


def outcome(run: Callable[[], Any], *, is_data: bool) -> tuple[Any, ...]:
    try:
        return ("value", run() if is_data else plain_data(run()))
    except Exception as error:
        return ("raised", plain_data(error))


def by_key(chunks: list[Any]) -> Any:
    """Chunks of a dict whose keys are filled side by side: for each key, its own chunks in order."""
    if not chunks or not all(isinstance(chunk, Mapping) for chunk in chunks):
        return chunks
    keys = sorted({key for chunk in chunks for key in chunk})
    return {key: [chunk[key] for chunk in chunks if key in chunk] for key in keys}


class Side:
    """One of the two: a chain, its world, and the world's inputs."""

    def __init__(self, world: World, runnable: Runnable[Any, Any]) -> None:
        self.world = world
        self.runnable = runnable
        self.inputs = world.inputs


class Sides:
    """The same chain several times: ``plain``, and ``compiled`` by mode."""

    def __init__(self, plain: Side, compiled: dict[str, Side]) -> None:
        self.plain = plain
        self.compiled = compiled

    def all(self) -> list[Side]:
        return [self.plain, *self.compiled.values()]

    def agree(self, run: Callable[[Side], Any], *, is_data: bool = False) -> Any:
        """Do the same with all: the outcomes are equal, and so is what was called on the way. Returns the plain outcome.

        Where asynchronous branches are abandoned because one of them failed, how far they came is nobody's promise, so
        after an error only the outcomes are compared.

        Args:
            is_data: ``run`` gives data that compares already.
        """
        expected = outcome(lambda: run(self.plain), is_data=is_data)
        for mode, side in self.compiled.items():
            assert (mode, outcome(lambda side=side: run(side), is_data=is_data)) == (mode, expected)
        if expected[0] == "value":
            self.did_the_same()
        return expected

    def did_the_same(self) -> None:
        log, requests = sorted(map(repr, self.plain.world.log)), self.plain.world.requests()
        for mode, side in self.compiled.items():
            assert (mode, sorted(map(repr, side.world.log))) == (mode, log)
            assert (mode, side.world.requests()) == (mode, requests)


# ---- fixtures --------------------------------------------------------------------------------------------------------
@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(inputs: Any = ()) -> World:
        made.append(World(inputs))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


@pytest.fixture
def modes() -> tuple[str, ...]:
    """The modes that a test compares. Where nothing can run as a program, a module may leave out "program"."""
    return MODES


@pytest.fixture
def sides(world, modes) -> Callable[..., Sides]:
    """``sides(build, inputs)``: what ``build(world)`` makes, as it is and compiled in each of the ``modes``."""

    def make(build: Callable[[World], Runnable[Any, Any]], inputs: Any = ()) -> Sides:
        compiled = {}
        for mode in modes:
            own = world(inputs)
            compiled[mode] = Side(own, compile_runnable(build(own), mode=mode))
        plain = world(inputs)
        return Sides(Side(plain, build(plain)), compiled)

    return make


@pytest.fixture(params=MODES)
def compiled(request: pytest.FixtureRequest) -> Callable[[Runnable[Any, Any]], Runnable[Any, Any]]:
    """Compiles, in one mode after another."""
    return lambda runnable: compile_runnable(runnable, mode=request.param)


@pytest.fixture
def normal() -> Callable[[Any], Any]:
    """Values as data that compares, whatever the order of keys: a streamed dict gets them as they come."""
    return lambda value: plain_data(value, is_ordered=False)


@pytest.fixture
def per_key() -> Callable[[list[Any]], Any]:
    return by_key


@pytest.fixture
def within_limit() -> Callable[[Callable[[], Any]], Any]:
    """Run something that a fault would make wait for ever, on a thread that then keeps nobody."""

    def run(work: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()

        def worker() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=worker, name="within-limit", daemon=True).start()
        return done.result(HANG_S)

    return run

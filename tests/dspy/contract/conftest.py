"""What the contract tests share: a backend that answers in whatever form it is asked for, and an LM on it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dspy
import pytest

from sgl_core.backend import Capabilities, Handle
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenRequest, GenResult, SamplingParams
from sgl_dspy.lm import SglLM

Value = Callable[[str, SamplingParams], Any]
_ASKED_FIELD = re.compile(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`")
_OPEN_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]\n\Z")
_OPEN_KEY = re.compile(r'"(\w+)": ?\Z')
_PATTERN_SAMPLES = ("7", "0.5", "true", "True", "text")
_TAILS = ("", ",", "\n", "\n\n", ",\n", "\n}")
"""With which a pattern may make sure that a number is over."""
_PLAIN: Mapping[str, Any] = {"integer": 7, "number": 0.5, "boolean": True, "null": None}


class Scripted(FakeBackend):
    """Answers by field, as a chat reply, as a JSON object or one field at a time, whichever the prompt and its constraint ask for.

    Args:
        script: values by field; a callable gets the prompt and the parameters. A text is written as it stands, everything else
            as JSON. Fields that are not in it get words that depend on the prompt (and on the seed, if that matters), or what
            their constraint allows.
        options: of ``FakeBackend``.
    """

    capabilities = Capabilities(cached_tokens=True, heal=True, context_tokens=2**17)

    def __init__(self, script: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(reply=self.written, **options)
        self.script = dict(script or {})
        self.handles: list[Handle[GenResult]] = []

    def submit(self, request: GenRequest) -> Any:
        """Remember the handle, too."""
        handle = super().submit(request)
        self.handles.append(handle)
        return handle

    def computed(self) -> int:
        """How many requests were answered to the end; callers may start one twice, but then abort one of the two."""
        return sum(handle.result(0).finish_reason is not FinishReason.ABORT for handle in self.handles)

    def written(self, ids: tuple[int, ...], params: SamplingParams) -> str:
        """The reply to a prompt."""
        prompt = self.codec.decode(ids)
        open_header, open_key = _OPEN_HEADER.search(prompt), _OPEN_KEY.search(prompt)
        if open_header is not None:
            return self._text(open_header[1], prompt, params)
        if open_key is not None:
            return self._text(open_key[1], prompt, params, is_json=True)
        _, is_asked, reminder = prompt.rpartition("Respond with ")
        fields = [name for name in _ASKED_FIELD.findall(reminder) if name != "completed"]
        if params.json_schema is not None and not (is_asked and _is_open(params.json_schema)):
            return json.dumps(self._by_schema("", params.json_schema, params.json_schema, prompt, params))
        if not is_asked:
            return self._text("", prompt, params)
        if reminder.startswith("a JSON object"):
            return json.dumps({name: self._value(name, prompt, params) for name in fields})
        body = "\n\n".join(f"[[ ## {name} ## ]]\n{self._text(name, prompt, params)}" for name in fields)
        return f"{body}\n\n[[ ## completed ## ]]\n"

    def prompts(self) -> list[str]:
        """Of all requests so far."""
        return [self.codec.decode(request.input_ids) for request in self.requests]

    def _text(self, name: str, prompt: str, params: SamplingParams, *, is_json: bool = False) -> str:
        """The text of a field; where the script's is not allowed, one that is."""
        if name not in self.script and params.choices is not None:
            return params.choices[_number(prompt, params) % len(params.choices)]
        if name not in self.script and params.json_schema is not None:
            return json.dumps(self._by_schema(name, params.json_schema, params.json_schema, prompt, params))
        value = self._value(name, prompt, params)
        text = value if isinstance(value, str) and not is_json else json.dumps(value)
        if params.regex is None:
            return text
        tries = (sample + tail for sample in (text, *_PATTERN_SAMPLES) for tail in _TAILS)
        fitting = [one for one in tries if re.fullmatch(params.regex, one)]
        assert fitting, f"no sample matches {params.regex}"
        return fitting[0]

    def _value(self, name: str, prompt: str, params: SamplingParams) -> Any:
        given = self.script.get(name, _words)
        return given(prompt, params) if callable(given) else given

    def _by_schema(self, name: str, schema: Any, root: Any, prompt: str, params: SamplingParams) -> Any:
        """A value that is valid by ``schema``: the script's where it has one."""
        if name in self.script:
            return self._value(name, prompt, params)
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._by_schema(name, schema[union][0], root, prompt, params)
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        kind = schema.get("type", "object")
        if kind == "object":
            parts = schema.get("properties", {})
            return {key: self._by_schema(key, part, root, prompt, params) for key, part in parts.items()}
        if kind == "array":
            return [self._by_schema("", schema.get("items", {}), root, prompt, params)]
        return _words(prompt, params) if kind == "string" else _PLAIN[kind]


def _is_open(schema: Any) -> bool:
    """Whether it is an object of which no properties are known."""
    schema = json.loads(schema) if isinstance(schema, str) else schema
    return schema.get("type") == "object" and not schema.get("properties")


def _number(prompt: str, params: SamplingParams) -> int:
    seed = params.seed if params.temperature > 0 else None
    return int.from_bytes(hashlib.sha256(f"{prompt}\0{seed}".encode()).digest()[:4], "big")


def _words(prompt: str, params: SamplingParams) -> str:
    return f"words {_number(prompt, params)}"


class Counting(dspy.utils.BaseCallback):
    """Writes down which callbacks fire, and with what."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append(("lm_start", inputs))

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        self.events.append(("lm_end", outputs if exception is None else exception))

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append(("format", inputs))

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append(("parse", inputs))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.events if name == kind]


@pytest.fixture
def scripted() -> Iterator[type[Scripted]]:
    """The class; what a test makes of it is closed afterwards."""
    made: list[Scripted] = []

    class Closed(Scripted):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    yield Closed
    for backend in made:
        backend.close()


@pytest.fixture
def fake(scripted: type[Scripted]) -> Scripted:
    return scripted()


@pytest.fixture
def lm(fake: Scripted) -> SglLM:
    """Configured; its backend is ``fake``, whose script a test may fill."""
    lm = SglLM(backend=fake)
    dspy.configure(lm=lm)
    return lm


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Retries come at once; the number of the attempt that each of them follows."""
    attempts: list[int] = []
    monkeypatch.setattr("dspy.clients.execution._delay", lambda error, attempt: attempts.append(attempt) or 0.0)
    return attempts


@pytest.fixture
def answers() -> Callable[..., list[dspy.Example]]:
    """Examples ``question -> answer`` for a script whose answer is ``shown(prompt)``."""

    def make(count: int) -> list[dspy.Example]:
        return [dspy.Example(question=f"q{i}", answer=f"re: q{i}").with_inputs("question") for i in range(count)]

    return make


def question_of(prompt: str, params: SamplingParams) -> str:
    """The last question of a prompt, answered."""
    return "re: " + re.findall(r"\[\[ ## question ## \]\]\n(.*?)(?=\n|\Z)", prompt)[-1]


@pytest.fixture
def echo() -> Value:
    """A script's value for ``answer`` that repeats the question."""
    return question_of

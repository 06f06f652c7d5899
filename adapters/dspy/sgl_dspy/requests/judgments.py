"""Questions with declared answers, answered by scoring: ``Config.probabilities`` of a typed request.

A judgment is a property of the ``response_format``'s schema that declares its answers: a boolean, an enum of texts, or levels from
0 on. Each is scored behind the ones before it, so that the answer is one JSON object, and its probabilities are the model's own
given that it gives one of the declared answers. Nothing is generated. Called by both engines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dspy import lm15

from sgl_core.chat.decisions import shares
from sgl_core.ids import new_id
from sgl_core.types import ScoreRequest, ScoreResult, Usage
from sgl_dspy.requests.calls import PreparedCall
from sgl_dspy.requests.responses import lm15_usage

__all__ = ["Judgment", "judge", "judgments_of"]

_METHOD: Final = "candidate_sequence_likelihood"


@dataclass(frozen=True, slots=True)
class Judgment:
    """One question.

    Args:
        name: of the property.
        answers: by their keys, in order.
    """

    name: str
    answers: Mapping[str, Any]


def judgments_of(request: lm15.Request) -> tuple[Judgment, ...]:
    """The questions of a request that wants probabilities; none if it does not, or if something in it is no question."""
    wants = request.config.probabilities in ("if_available", "required")
    return _declared(request.config.response_format) if wants else ()


def judge(
    judgments: Sequence[Judgment], call: PreparedCall, request: lm15.Request
) -> Generator[ScoreRequest, ScoreResult, lm15.Response]:
    """Asks for scores, one question after the other, and returns the answer to all of them."""
    codec = call.codec
    text, ids = "", call.prompt.ids
    value: dict[str, Any] = {}
    probabilities: dict[str, dict[str, float]] = {}
    usages: list[Usage] = []
    for index, judgment in enumerate(judgments):
        before, endings = _written(judgment, is_first=index == 0, is_last=index == len(judgments) - 1)
        ids = call.prompt.ids + codec.encode(text + before)
        spans = tuple(codec.encode(ending) for ending in endings)
        result = yield ScoreRequest(ids, spans, namespace=call.namespace, timeout_s=call.timeout_s)
        likelihoods = shares([math.fsum(row) for row in result.token_logprobs])
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        value[judgment.name] = list(judgment.answers.values())[best]
        probabilities[judgment.name] = dict(zip(judgment.answers, likelihoods, strict=True))
        text += before + endings[best]
        usages.append(result.usage)
    prompt = len(call.prompt.ids)
    usage = Usage(prompt, min(usages[0].cached_tokens, prompt), 0)
    return lm15.Response(
        id=new_id(),
        model=request.model,
        message=lm15.Message("assistant", (lm15.DataPart(value, probabilities, _METHOD),)),
        finish_reason="stop",
        usage=lm15_usage(usage, counts_cached=call.backend.capabilities.cached_tokens),
        adaptations=call.adaptations,
    )


def _declared(response_format: Any) -> tuple[Judgment, ...]:
    schema = (response_format or {}).get("schema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return ()
    found = [(name, _answers(described)) for name, described in properties.items()]
    return tuple(Judgment(name, answers) for name, answers in found if answers) if all(one for _, one in found) else ()


def _answers(described: Any) -> Mapping[str, Any] | None:
    """The answers that a property declares, by their keys."""
    if not isinstance(described, dict):
        return None
    if described.get("type") == "boolean":
        return {"true": True, "false": False}
    values = described.get("enum")
    if values is None and isinstance(described.get("anyOf"), list):
        values = [one.get("const") if isinstance(one, dict) else None for one in described["anyOf"]]
    if not isinstance(values, list) or not values:
        return None
    if all(isinstance(one, str) and one for one in values) and len(set(values)) == len(values):
        return {one: one for one in values}
    if values == list(range(len(values))) and not any(isinstance(one, bool) for one in values):
        return {str(one): one for one in values}
    return None


def _written(judgment: Judgment, *, is_first: bool, is_last: bool) -> tuple[str, list[str]]:
    """What stands before the answer, and each answer to the character that ends it, so that none begins another one."""
    values = list(judgment.answers.values())
    quote = '"' if isinstance(values[0], str) else ""
    before = f"{'{' if is_first else ' '}{_json(judgment.name)}: {quote}"
    end = "}" if is_last else ","
    return before, [f"{_json(value)[len(quote) :]}{end}" for value in values]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

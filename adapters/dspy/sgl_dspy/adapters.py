"""``ChatAdapter`` and ``JSONAdapter``: DSPy's own, whose replies are written field by field on an engine of ours.

An adapter adds a ``ReplyProgram`` to the options of a call, where the engine finds it; prompts and parsing stay DSPy's. Another LM
gets what it always got. The class names are DSPy's because its stream listeners know adapters by name. Adapters own nothing but
their settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, get_args, get_origin

import dspy
from dspy.adapters.types import Tool

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.engine import SglEngine
from sgl_dspy.formats.fields import reply_program_for
from sgl_dspy.formats.hoisting import arranged, hoisted_names
from sgl_dspy.formats.reply_program import PROGRAM_KEY
from sgl_dspy.lm import SglLM

__all__ = ["ChatAdapter", "JSONAdapter", "Structure", "configure", "tools_in_reach"]

Structure = Literal["fields", "stop", "off"]

_STRUCTURES: Final = get_args(Structure)
_UNWRAPPED_FORMAT: Final = inspect.unwrap(dspy.ChatAdapter.format)
"""DSPy wraps it in every subclass once more, and its callbacks would hear of each call once for every wrapper."""
_COMPLETED: Final = "[[ ## completed ## ]]"
_OWN_FORMAT: Final = ("logprobs", "response_format", "tools", "top_logprobs")
"""Options that say themselves how a reply is written, or want the probability of each token of it."""


class _CallOptions(dict[str, Any]):
    """A copy of the options of a call, which may be shared, the demos of it, and its ``tool_choice``.

    DSPy takes that one out of the options where calls are written as text.
    """

    def __init__(self, options: Mapping[str, Any], demos: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(options)
        self.demos = demos
        self.tool_choice: Any = options.tool_choice if isinstance(options, _CallOptions) else options.get("tool_choice")


class _StructuredReplies:
    """What both adapters add to DSPy's; before them in the order of bases."""

    structure: Structure
    _is_json = False

    def __call__(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """As DSPy's; ``lm_kwargs`` is left as it is."""
        outputs: list[dict[str, Any]] = super().__call__(lm, _CallOptions(lm_kwargs, demos), signature, demos, inputs)  # type: ignore[misc]
        return outputs

    async def acall(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """As DSPy's; ``lm_kwargs`` is left as it is."""
        outputs: list[dict[str, Any]] = await super().acall(lm, _CallOptions(lm_kwargs, demos), signature, demos, inputs)  # type: ignore[misc]
        return outputs

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """As DSPy's, unless a compiled module around the call has its prompts laid out in another way."""
        return arranged(self, partial(_UNWRAPPED_FORMAT, self), signature, demos, inputs)

    def _call_preprocess(
        self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any], signature: type[dspy.Signature], inputs: dict[str, Any]
    ) -> type[dspy.Signature]:
        """Plan the reply to what DSPy has left in the signature, for a native feature may have taken fields out of it."""
        processed: type[dspy.Signature] = super()._call_preprocess(lm, lm_kwargs, signature, inputs)  # type: ignore[misc]
        _forget_program(lm_kwargs)
        if self._is_for(lm):
            self._structure(lm, lm_kwargs, processed, inputs)
        return processed

    def _is_for(self, lm: dspy.BaseLM) -> bool:
        """Whether calls of ``lm`` are structured at all."""
        return self.structure != "off" and isinstance(getattr(lm, "engine", None), SglEngine)

    def _structure(
        self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any], signature: type[dspy.Signature], inputs: Mapping[str, Any]
    ) -> None:
        """Add a program, or what there is instead of one."""
        if self._writes_freely(lm, lm_kwargs):
            return
        program = None
        if self.structure == "fields":
            demos = lm_kwargs.demos if isinstance(lm_kwargs, _CallOptions) else None
            must_call, tools = _demanded(lm_kwargs, tools_in_reach(signature, inputs))
            program = reply_program_for(
                signature,
                is_json=self._is_json,
                tools=tools,
                must_call=must_call,
                shared=None if demos is None else (0, _num_static(signature, demos, inputs)),
            )
        if program is None:
            self._without_program(lm, lm_kwargs)
            return
        metadata = _option(lm, lm_kwargs, "metadata") or {}
        if not isinstance(metadata, Mapping):
            raise InvalidArgumentError("metadata", type(metadata).__name__, "a dict")
        lm_kwargs["metadata"] = {**metadata, PROGRAM_KEY: program.to_json()}

    def _writes_freely(self, lm: dspy.BaseLM, lm_kwargs: Mapping[str, Any]) -> bool:
        return any(_option(lm, lm_kwargs, name) for name in _OWN_FORMAT) or _option(lm, lm_kwargs, "top_logprobs") == 0

    def _without_program(self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any]) -> None:
        """What there is to do where no program can be made."""


class ChatAdapter(_StructuredReplies, dspy.ChatAdapter):  # type: ignore[misc]  # dspy has no types
    """``dspy.ChatAdapter`` for small models: on an engine of ours, replies come in its format, whatever the model.

    Field headers are written for the model, and each value is held to its type: one of a Literal's, a number, JSON by the
    schema. See ``fields`` for what has a step; a signature with another field ends at the completed marker and is parsed as ever.
    Calls that ask for logprobs, tools or a response format write freely.

    Args:
        structure: "fields" for all of that, "stop" only to end at the completed marker, "off" for DSPy's own behaviour.
        callbacks, use_native_function_calling, native_response_types, use_json_adapter_fallback, parallel_tool_calls: as DSPy's.

    Raises:
        InvalidArgumentError: ``structure`` is none of the three, or stands where ``callbacks`` belong.
    """

    # As with ``_UNWRAPPED_FORMAT``.
    parse = inspect.unwrap(dspy.ChatAdapter.parse)

    def __init__(
        self,
        callbacks: list[Any] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: list[type] | None = None,
        use_json_adapter_fallback: bool = True,
        parallel_tool_calls: bool | None = None,
        *,
        structure: Structure = "fields",
    ) -> None:
        """Keep the settings."""
        super().__init__(
            callbacks=callbacks,
            use_native_function_calling=use_native_function_calling,
            native_response_types=native_response_types,
            use_json_adapter_fallback=use_json_adapter_fallback,
            parallel_tool_calls=parallel_tool_calls,
        )
        self.structure = _checked(structure, callbacks)

    def _make_json_adapter_fallback(self) -> JSONAdapter:
        return JSONAdapter(
            use_native_function_calling=self.use_native_function_calling,
            parallel_tool_calls=self.parallel_tool_calls,
            structure=self.structure,
        )

    def _without_program(self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any]) -> None:
        """End at the marker, besides where the caller wants to."""
        given = _option(lm, lm_kwargs, "stop") or ()
        stops = [given] if isinstance(given, str) else list(given)
        lm_kwargs["stop"] = [*stops, *([] if _COMPLETED in stops else [_COMPLETED])]


class JSONAdapter(_StructuredReplies, dspy.JSONAdapter):  # type: ignore[misc]  # dspy has no types
    """``dspy.JSONAdapter`` for small models: on an engine of ours, one object with all fields in the order of the signature.

    Its keys are written for the model, and each value is held to its type, also where DSPy knows no schema (``dict[str, int]``).
    A signature with a field that has no step, and calls with logprobs or tools, go to the engine with DSPy's response format.

    Args:
        structure: "fields" for that; "stop" and "off" for DSPy's own behaviour, whose format has no marker to end at.
        callbacks, use_native_function_calling, parallel_tool_calls: as DSPy's.

    Raises:
        InvalidArgumentError: ``structure`` is none of the three, or stands where ``callbacks`` belong.
    """

    _is_json = True
    parse = inspect.unwrap(dspy.JSONAdapter.parse)  # as above

    def __init__(
        self,
        callbacks: list[Any] | None = None,
        use_native_function_calling: bool = True,
        parallel_tool_calls: bool | None = None,
        *,
        structure: Structure = "fields",
    ) -> None:
        """Keep the settings."""
        super().__init__(
            callbacks=callbacks,
            use_native_function_calling=use_native_function_calling,
            parallel_tool_calls=parallel_tool_calls,
        )
        self.structure = _checked(structure, callbacks)

    def _prepare_response_format(self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any], signature: type[dspy.Signature]) -> None:
        """Wait for what ``_structure`` finds: a program takes its place, and it takes a while to make."""
        if not self._is_for(lm):
            super()._prepare_response_format(lm, lm_kwargs, signature)

    def _structure(
        self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any], signature: type[dspy.Signature], inputs: Mapping[str, Any]
    ) -> None:
        lm_kwargs.pop("response_format", None)  # DSPy's adapter replaces it, too
        super()._structure(lm, lm_kwargs, signature, inputs)
        if PROGRAM_KEY not in (lm_kwargs.get("metadata") or ()):
            super()._prepare_response_format(lm, lm_kwargs, signature)


def configure(model: str | None = None, *, structure: Structure = "fields", **lm_options: Any) -> None:
    """``dspy.configure`` with an ``SglLM`` and a ``ChatAdapter``.

    Args:
        model: as in ``SglLM``.
        structure: as in ``ChatAdapter``.
        lm_options: other arguments of ``SglLM``.

    Raises:
        InvalidArgumentError: as ``SglLM`` and ``ChatAdapter``.
        ModelError: the model cannot be found.
    """
    for name, is_given in (("adapter", "adapter" in lm_options), ("lm", "lm" in lm_options or isinstance(model, dspy.BaseLM))):
        if is_given:
            cure = "With one of your own, write dspy.configure(lm=..., adapter=...)."
            raise InvalidArgumentError("configure", name, "a model, structure, and options of SglLM", cure)
    adapter = ChatAdapter(structure=structure)
    dspy.configure(lm=SglLM(model, **lm_options), adapter=adapter)


def tools_in_reach(signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> dict[str, Tool] | None:
    """The tools that a reply may name: those among the inputs, or those of the ReAct module that is running; None if neither.

    Args:
        signature: of the call.
        inputs: of the call.
    """
    if any(info.annotation is dspy.ToolCalls for info in signature.output_fields.values()):
        for name, info in signature.input_fields.items():
            if info.annotation is Tool or (get_origin(info.annotation) is list and get_args(info.annotation) == (Tool,)):
                given = inputs.get(name) or []
                return {str(tool.name): tool for tool in (given if isinstance(given, list) else [given])}
        return None
    choice = signature.output_fields.get("next_tool_name")
    if choice is None or get_origin(choice.annotation) is not Literal:
        return None
    names = set(get_args(choice.annotation))
    for module in reversed(dspy.settings.caller_modules or []):
        if isinstance(module, dspy.ReAct) and module.tools.keys() == names:
            return dict(module.tools)
    return None


def _demanded(lm_kwargs: Mapping[str, Any], tools: dict[str, Tool] | None) -> tuple[bool, dict[str, Tool] | None]:
    """Whether the caller demands a call, and the tools that it may be of."""
    choice = lm_kwargs.tool_choice if isinstance(lm_kwargs, _CallOptions) else None
    match choice:
        case "required":
            return True, tools
        case {"function": {"name": str(name)}} if tools is not None and name in tools:
            return True, {name: tools[name]}
    return False, tools


def _option(lm: dspy.BaseLM, lm_kwargs: Mapping[str, Any], name: str) -> Any:
    """An option of a call: given with it, or the LM's default."""
    return lm_kwargs.get(name, getattr(lm, "kwargs", {}).get(name))


def _forget_program(lm_kwargs: dict[str, Any]) -> None:
    """Take another adapter's program out of the options, as the fallback to JSON finds it there."""
    metadata = lm_kwargs.get("metadata")
    if isinstance(metadata, Mapping) and PROGRAM_KEY in metadata:
        rest = {key: value for key, value in metadata.items() if key != PROGRAM_KEY}
        lm_kwargs["metadata"] = rest
        if not rest:
            del lm_kwargs["metadata"]


def _num_static(signature: type[dspy.Signature], demos: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any]) -> int:
    """Messages that other calls begin with: system and demos, unless the first turn holds an input of this call."""
    return 1 if hoisted_names(signature, inputs) else 1 + 2 * _num_shown(signature, demos)


def _num_shown(signature: type[dspy.Signature], demos: Sequence[Mapping[str, Any]]) -> int:
    """Demos that DSPy renders: those with all fields, and those with an input and an output."""

    def is_shown(demo: Mapping[str, Any]) -> bool:
        has_both = any(name in demo for name in signature.input_fields) and any(
            name in demo for name in signature.output_fields
        )
        return has_both or all(demo.get(name) is not None for name in signature.fields)

    return sum(map(is_shown, demos))


def _checked(structure: Structure, callbacks: object) -> Structure:
    if isinstance(callbacks, str):
        cure = f"Write structure={callbacks!r}." if callbacks in _STRUCTURES else ""
        raise InvalidArgumentError("callbacks", callbacks, "a list of callbacks, or None", cure)
    if structure not in _STRUCTURES:
        raise InvalidArgumentError("structure", structure, " or ".join(map(repr, _STRUCTURES)))
    return structure

"""``explain``: what the prompts of a program share, what keeps them from sharing more, and which outputs have no plan.

What can be seen without running comes from the predictors as they are now. What depends on values comes from the first run of a
compiled module, see ``recording``. Called by users; changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import dspy

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.graph import Graph
from sgl_core.language.graph_svg import to_svg
from sgl_dspy.compiled.compiling import compiled_scope, named_predictors, plan_of
from sgl_dspy.compiled.recorded_graph import graph_of
from sgl_dspy.compiled.recording import RecordedCall, Recording
from sgl_dspy.compiled.static_prefix import PromptReader, StaticPrefix, shared_len, static_prefix
from sgl_dspy.formats.fields import unplanned_fields
from sgl_dspy.formats.hoisting import Input, Layout, input_of

__all__ = ["Explanation", "PredictorReport", "explain"]

_LONG: Final = 64
"""Characters from which an input is worth standing before others."""


@dataclass(frozen=True, slots=True)
class PredictorReport:
    """One predictor.

    Args:
        name: in the program.
        inputs: as they stand in its prompts, hoisted ones first.
        outputs: of its signature.
        static_len: of what all its calls begin with; None where that cannot be told.
        num_demos: examples in that.
        hints: what keeps it from sharing more, and the cure.
        unplanned: outputs that have no plan, with the reason.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    static_len: int | None
    num_demos: int
    hints: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say about a program; as text, ``str`` of it.

    Args:
        program: the name of its class.
        unit: in which lengths are counted.
        predictors: of it, in order.
        notes: about the program as a whole.
        graph: the first run of a compiled program, to be drawn; None before it, or for a program that is not compiled.
    """

    program: str
    unit: str
    predictors: tuple[PredictorReport, ...]
    notes: tuple[str, ...] = ()
    graph: Graph | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """A block for each predictor, then the notes."""
        blocks = ["\n".join(_lines(report, self.unit)) for report in self.predictors]
        head = f"{self.program}: {len(self.predictors)} predictor{'' if len(self.predictors) == 1 else 's'}"
        return "\n\n".join([head, *blocks, *(["\n".join(self.notes)] if self.notes else [])])

    def svg(self) -> str:
        """The first run as a picture: a lane for each part of a prompt that is computed once.

        Raises:
            InvalidArgumentError: nothing has been recorded.
        """
        if self.graph is None:
            cure = "Compile the program with compile_module, run it once and explain it again."
            raise InvalidArgumentError("graph", None, "a program that has run", cure)
        return to_svg(self.graph, self.program)


def explain(program: Any, lm: Any = None) -> Explanation:
    """Say what the prompts of a program share.

    Args:
        program: a module, compiled or not.
        lm: whose tokens are counted; None is that of the predictor, or the configured one. One of ours is loaded for it; with
            any other, lengths are characters.

    Raises:
        InvalidArgumentError: ``program`` is no module.
    """
    if not isinstance(program, dspy.Module):
        raise InvalidArgumentError("program", type(program).__name__, "a dspy.Module")
    plan = plan_of(program)
    layout = Layout() if plan is None else plan.layout
    recording = None if plan is None else plan.first_run.recording
    predictors = named_predictors(program)
    readers = {name: PromptReader(lm or one.lm or dspy.settings.lm) for name, one in predictors.items()}
    with contextlib.nullcontext() if plan is None else compiled_scope(layout):
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        prefixes = {name: static_prefix(adapter, one, readers[name]) for name, one in predictors.items()}
    calls = () if recording is None else recording.calls
    reports = tuple(
        _report(name, one, prefixes[name], layout, adapter, [call for call in calls if call.predictor == name])
        for name, one in predictors.items()
    )
    reader = next(iter(readers.values()), PromptReader(lm or dspy.settings.lm))
    notes = [*_adapter_notes(adapter), *_shared_notes(predictors, prefixes, layout, reader.unit)]
    if recording is not None and recording.calls:
        notes.append(_run_note(recording, reader))
    graph = None if recording is None or not recording.calls else graph_of(recording)
    return Explanation(type(program).__name__, reader.unit, reports, tuple(notes), graph)


# ---- one predictor ---------------------------------------------------------------------------------------------------
def _report(
    name: str, predictor: Any, prefix: StaticPrefix | None, layout: Layout, adapter: Any, calls: Sequence[RecordedCall]
) -> PredictorReport:
    signature = layout.reordered(predictor.signature)
    hoisted = layout.shared_of(signature)
    inputs = (*hoisted, *(one for one in signature.input_fields if one not in hoisted))
    return PredictorReport(
        name,
        inputs,
        tuple(signature.output_fields),
        None if prefix is None else len(prefix.ids),
        0 if prefix is None else prefix.num_demos,
        tuple(_order_hints(inputs, calls)),
        tuple(_unplanned(signature, adapter)),
    )


def _order_hints(inputs: Sequence[str], calls: Sequence[RecordedCall]) -> Iterator[str]:
    """Long inputs that come again in several calls, behind one that differs more often."""
    if len(calls) < 2:
        return
    shown = {name: [str(call.inputs.get(name, "")) for call in calls] for name in inputs}
    distinct = {name: len(set(texts)) for name, texts in shown.items()}
    for at, name in enumerate(inputs):
        before = max(inputs[:at], key=lambda other: distinct[other], default=None)
        if before is None or distinct[before] <= distinct[name] or distinct[name] == len(calls):
            continue
        if max(map(len, shown[name])) >= _LONG:
            yield (
                f"{name!r} had {_values(distinct[name])} in {len(calls)} calls, but stands behind {before!r}, which had "
                f"{distinct[before]}: reorder_inputs=[{name!r}]"
            )


def _values(count: int) -> str:
    return f"{count} value{'' if count == 1 else 's'}"


def _unplanned(signature: Any, adapter: Any) -> Iterator[str]:
    is_json = isinstance(adapter, dspy.JSONAdapter)
    for name in unplanned_fields(signature, is_json=is_json):
        annotation = signature.output_fields[name].annotation
        shown = getattr(annotation, "__name__", None) or repr(annotation)
        yield f"{name!r} has no plan: nothing is known of how a {shown} is written, so the model writes the whole reply freely"


def _lines(report: PredictorReport, unit: str) -> Iterator[str]:
    yield f"{report.name}: {', '.join(report.inputs)} -> {', '.join(report.outputs)}"
    if report.static_len is None:
        yield "  shared by its calls: only a run can tell"
    else:
        demos = f", {report.num_demos} demo{'' if report.num_demos == 1 else 's'} in it" if report.num_demos else ""
        first = f"; then {report.inputs[0]!r} differs" if report.inputs else ""
        behind = f", and behind it {', '.join(map(repr, report.inputs[1:]))}" if len(report.inputs) > 1 else ""
        yield f"  shared by its calls: {report.static_len:,} {unit}{demos}{first}{behind}"
    yield from (f"  {hint}" for hint in (*report.hints, *report.unplanned))


# ---- the program -----------------------------------------------------------------------------------------------------
def _adapter_notes(adapter: Any) -> Iterator[str]:
    from sgl_dspy.adapters import ChatAdapter, JSONAdapter

    if not isinstance(adapter, dspy.ChatAdapter) or type(adapter) not in (
        ChatAdapter,
        JSONAdapter,
        dspy.ChatAdapter,
        dspy.JSONAdapter,
    ):
        yield f"The adapter, {type(adapter).__name__}, is left alone: nothing is hoisted, and no output has a plan."
    elif type(adapter) in (dspy.ChatAdapter, dspy.JSONAdapter):
        yield f"No output has a plan: the adapter is DSPy's {type(adapter).__name__}, and the program is not compiled."


def _shared_notes(
    predictors: Mapping[str, Any], prefixes: Mapping[str, StaticPrefix | None], layout: Layout, unit: str
) -> Iterator[str]:
    """Inputs that several predictors have in common."""
    readers: dict[Input, list[str]] = {}
    for name, predictor in predictors.items():
        for one in predictor.signature.input_fields:
            readers.setdefault(input_of(predictor.signature, one), []).append(name)
    for given, names in readers.items():
        if len(names) < 2:
            continue
        if given in layout.hoisted:
            yield f"{given[0]!r} stands first in the prompts of {', '.join(names)}: computed once for each value of it."
            continue
        known = [prefix for name in names if (prefix := prefixes[name]) is not None]
        if len(known) < 2:
            continue
        common = min(shared_len(known[0].ids, prefix.ids) for prefix in known[1:])
        if any(common < len(prefix.ids) for prefix in known):
            yield (
                f"{', '.join(names)} all read {given[0]!r}, but their prompts differ from {unit[:-1]} {common + 1:,} on, "
                f"before it: hoist=[{given[0]!r}]"
            )


def _run_note(recording: Recording, reader: PromptReader) -> str:
    """What a cache that drops nothing saves in the recorded run."""
    root: dict[Any, Any] = {}
    total = shared = 0
    for call in recording.calls:
        for messages in call.prompts:
            ids = reader.ids(messages)
            total += len(ids)
            node, is_known = root, True
            for one in ids:
                is_known = is_known and one in node
                shared += is_known
                node = node.setdefault(one, {})
    calls = f"{len(recording.calls)} call{'' if len(recording.calls) == 1 else 's'}"
    return f"First run: {calls}, {total:,} {reader.unit} of prompts, {shared / total:.0%} of them at the beginning of an earlier one."

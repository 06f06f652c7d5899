"""``compile_module``: the same DSPy program, its prompts laid out for sharing and its attempts run side by side.

What comes back is a deep copy of the same class. Its behaviour is an instance attribute, ``forward`` or ``aforward``, that puts a
layout and one of our adapters into DSPy's settings and calls the module's own; so optimisers, saved files and ``isinstance`` see
what they always saw. Called by users and by the plugin. A ``ModulePlan`` belongs to its module; nothing else is kept.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Final

import dspy

from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_dspy.adapters import ChatAdapter, JSONAdapter
from sgl_dspy.best_of_n import run_best_of_n
from sgl_dspy.compiled.recording import FirstRun
from sgl_dspy.formats.hoisting import LAYOUT_KEY, Input, Layout, current_layout, input_of

__all__ = ["OPTIONS", "ModulePlan", "adapter_like", "compile_module", "compiled_scope", "named_predictors", "plan_of"]

OPTIONS: Final = ("hoist", "speculate", "reorder_inputs")
"""Of ``compile_module``."""
_PLAN: Final = "_plan"


class ModulePlan:
    """What a module was compiled with, and what its first run looked like.

    Args:
        layout: of its prompts.
        speculate: attempts of a BestOfN inside that run side by side.
    """

    def __init__(self, layout: Layout, speculate: int) -> None:
        """Nothing has run."""
        self.layout = layout
        self.speculate = speculate
        self.first_run = FirstRun()


def compile_module(
    module: Any,
    *,
    hoist: Sequence[str] = (),
    speculate: int = 1,
    reorder_inputs: Sequence[str] | None = None,
    **unknown: Any,
) -> Any:
    """A copy of a module that shares more of its prompts.

    Args:
        module: a ``dspy.Module``; it stays as it is.
        hoist: inputs that several predictors inside have in common, such as a document that all of them judge. They come first
            in the prompt, with the predictor's task behind them. The text differs from DSPy's, so compile before you optimise.
        speculate: how many attempts of each ``dspy.BestOfN`` inside run at the same time; 1 is DSPy's own way, one after another.
        reorder_inputs: inputs to put before a predictor's others, such as a context that many questions are asked about. Changes
            the text as well.
        unknown: refused.

    Returns:
        A deep copy of the same class. It runs with our adapter of the kind that is configured (``ChatAdapter`` without one); an
        adapter that is neither DSPy's ``ChatAdapter`` nor its ``JSONAdapter`` is left alone, and nothing is laid out then.

    Raises:
        InvalidArgumentError: ``module`` is no module, a name is no input of enough predictors, or ``speculate`` has no use.
        UnknownOptionError: an option that there is not.
    """
    for name in unknown:
        raise UnknownOptionError("compile_module", name, OPTIONS)
    if not isinstance(module, dspy.Module):
        cure = "Make an instance of it first." if isinstance(module, type) else ""
        raise InvalidArgumentError("module", type(module).__name__, "a dspy.Module", cure)
    signatures = {name: predictor.signature for name, predictor in named_predictors(module).items()}
    layout = Layout(_hoisted(hoist, signatures), _first(reorder_inputs, signatures))
    if isinstance(speculate, bool) or not isinstance(speculate, int) or speculate < 1:
        raise InvalidArgumentError("speculate", speculate, "an int of at least 1")
    compiled = _copied(module)
    plan = plan_of(compiled)
    compiled.__dict__[_PLAN] = ModulePlan(layout if plan is None else layout.inside(plan.layout), speculate)
    if speculate > 1:
        _speculate(compiled, speculate)
    _install(compiled, "forward", _Forward)
    _install(compiled, "aforward", _AsyncForward)
    return compiled


def plan_of(module: Any) -> ModulePlan | None:
    """What a module was compiled with; None if it was not."""
    plan = getattr(module, "__dict__", {}).get(_PLAN)
    return plan if isinstance(plan, ModulePlan) else None


def named_predictors(module: Any) -> dict[str, Any]:
    """All predictors inside by name, those of modules that an optimiser has frozen too."""
    found = module.named_sub_modules(type_=dspy.Predict)
    return {name.removeprefix("self."): predictor for name, predictor in found}


def adapter_like(ambient: Any) -> Any:
    """Our adapter of the same kind, with the same settings; anything else as it is."""
    kind = {type(None): ChatAdapter, dspy.ChatAdapter: ChatAdapter, dspy.JSONAdapter: JSONAdapter}.get(type(ambient))
    if kind is None:
        return ambient
    ours = kind()
    if ambient is not None:
        ours.__dict__.update(ambient.__dict__)
    return ours


@contextmanager
def compiled_scope(layout: Layout) -> Iterator[None]:
    """Inside, prompts are laid out so, by our adapter."""
    settings = {LAYOUT_KEY: layout.inside(current_layout()), "adapter": adapter_like(dspy.settings.adapter)}
    with dspy.context(**settings):
        yield


# ---- what stands in an instance --------------------------------------------------------------------------------------
class _InstanceMethod:
    """A method of one module, which finds its module in copies, too. Calls what stood there before.

    DSPy copies modules that cannot be copied as a whole attribute by attribute; then nobody tells this object of its new module.
    So it asks DSPy, while it is called, whose turn it is.
    """

    def __init__(self, module: Any, name: str) -> None:
        before = module.__dict__.get(name)
        self._module = module
        self._name = name
        self._before = before.__func__ if isinstance(before, MethodType) and before.__self__ is module else before
        self._is_bound = self._before is before  # what is not a method of the module is called without it

    @property
    def __wrapped__(self) -> Any:
        """What it stands for: signatures are looked up there."""
        return self._original(self._module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _InstanceMethod:
        """The same for the module's copy, where the module is being copied."""
        copied = copy.copy(self)
        copied._module = memo.get(id(self._module), self._module)
        copied._before = copy.deepcopy(self._before, memo)
        return copied

    def _bound(self) -> Any:
        callers = dspy.settings.caller_modules
        if callers and callers[-1].__dict__.get(self._name) is self:
            return callers[-1]
        return self._module

    def _original(self, module: Any) -> Any:
        if self._before is None:
            return getattr(type(module), self._name).__get__(module)
        return self._before if self._is_bound else MethodType(self._before, module)


class _Forward(_InstanceMethod):
    """``forward`` of a compiled module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._bound()
        plan = module.__dict__[_PLAN]
        with compiled_scope(plan.layout), plan.first_run.recorded(module, kwargs):
            return self._original(module)(*args, **kwargs)


class _AsyncForward(_InstanceMethod):
    """``aforward`` of a compiled module."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._bound()
        plan = module.__dict__[_PLAN]
        with compiled_scope(plan.layout), plan.first_run.recorded(module, kwargs):
            return await self._original(module)(*args, **kwargs)


class _SpeculativeForward(_InstanceMethod):
    """``forward`` of a BestOfN inside a compiled module."""

    def __init__(self, module: Any, name: str, speculate: int) -> None:
        super().__init__(module, name)
        self._speculate = speculate

    def __call__(self, **kwargs: Any) -> Any:
        return run_best_of_n(self._bound(), kwargs, speculate=self._speculate)


def _install(module: Any, name: str, kind: type[_InstanceMethod]) -> None:
    """Once is enough: the plan is looked up when the module is called."""
    there = module.__dict__.get(name)
    if not isinstance(there, kind) and (there is not None or hasattr(type(module), name)):
        module.__dict__[name] = kind(module, name)


def _speculate(module: Any, speculate: int) -> None:
    searches = [found for _, found in module.named_sub_modules(type_=dspy.BestOfN) if type(found) is dspy.BestOfN]
    if not searches:
        raise InvalidArgumentError("speculate", speculate, "1 for a module without a dspy.BestOfN inside")
    for search in searches:
        search.__dict__["forward"] = _SpeculativeForward(search, "forward", speculate)


def _copied(module: Any) -> Any:
    """A deep copy that keeps its callbacks, which DSPy leaves out of copies."""
    copied = module.deepcopy()
    originals = dict(module.named_sub_modules(type_=dspy.Module))
    for name, inner in copied.named_sub_modules(type_=dspy.Module):
        if name in originals:
            inner.callbacks = list(originals[name].callbacks)
    return copied


# ---- arguments -------------------------------------------------------------------------------------------------------
def _hoisted(given: Sequence[str], signatures: Mapping[str, Any]) -> tuple[Input, ...]:
    """The inputs of these names that at least two predictors share."""
    counts = Counter(input_of(signature, name) for signature in signatures.values() for name in signature.input_fields)
    hoisted: list[Input] = []
    for name in _names("hoist", given, signatures):
        shared = [found for found, count in counts.items() if found[0] == name and count > 1]
        if not shared:
            cure = "An input of one predictor alone comes before its others with reorder_inputs."
            raise InvalidArgumentError("hoist", name, "an input that two predictors have with the same annotation", cure)
        fields = [signature.input_fields[name] for signature in signatures.values() if name in signature.input_fields]
        if any(_holds_own_type(field.annotation) for field in fields):
            raise InvalidArgumentError("hoist", name, "an input that is text or plain data, not one of DSPy's own types")
        hoisted += shared
    return tuple(hoisted)


def _first(given: Sequence[str] | None, signatures: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_names("reorder_inputs", given or (), signatures))


def _names(argument: str, given: Sequence[str], signatures: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        cure = f"Write {argument}=[{given!r}]." if isinstance(given, str) else ""
        raise InvalidArgumentError(argument, given, "a list of names of inputs", cure)
    known = {name for signature in signatures.values() for name in signature.input_fields}
    for name in dict.fromkeys(given):
        if name not in known:
            raise UnknownOptionError(argument, name, known)
        yield name


def _holds_own_type(annotation: Any) -> bool:
    return bool(dspy.Type.extract_custom_type_from_annotation(annotation)) or annotation is dspy.History

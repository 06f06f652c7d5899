"""Steps without a model: formatting, parsing, picking, and host code that runs as it is.

Those of LangChain's own that only compute are computed on the spot. Whatever may block, or may look at its configuration, is
host code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.output_parsers.base import BaseLLMOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from sgl_langchain.programs.effects import Evaluation, Host
from sgl_langchain.programs.operation import NO_KWARGS, Frame, Kwargs, Operation

__all__ = ["Format", "Function", "HostCall", "Identity", "Pure", "Read", "Take"]

_PROMPTS: Final = "langchain_core.prompts."


class HostCall(Operation):
    """A runnable that runs by its own ``invoke`` or ``ainvoke``."""

    sees_config = True

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        """Keep it."""
        self._runnable = runnable

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Run it, once."""
        return (yield Host(self._runnable, value, frame.config, kwargs))


class Identity(Operation):
    """The value itself, the same object."""

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:  # noqa: ARG002
        """Nothing happens."""
        return value
        yield


class Function(Operation):
    """What a plugin wants called in place of ``invoke``; it may block.

    Args:
        runnable: what it stands for.
        function: the value to the value.
    """

    def __init__(self, runnable: Runnable[Any, Any], function: Callable[[Any], Any]) -> None:
        """Make a runnable of it."""
        name = getattr(runnable, "name", None) or type(runnable).__name__
        self._runnable: Runnable[Any, Any] = RunnableLambda(lambda value: function(value), name=name)

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:  # noqa: ARG002
        """Call it, once."""
        return (yield Host(self._runnable, value, frame.config, NO_KWARGS))


class Pure(Operation):
    """A function that depends on nothing but its input and changes nothing, such as ``itemgetter``."""

    def __init__(self, runnable: RunnableLambda[Any, Any]) -> None:
        """Keep it."""
        self._runnable = runnable

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Compute it; a runnable that it picks is run by LangChain, as ever."""
        output = self._runnable.func(value, **kwargs)
        if isinstance(output, Runnable):
            return (yield Host(self._runnable, value, frame.config, kwargs))
        return output


class Format(Operation):
    """A prompt template. One that asks an example selector, or that is not LangChain's own, is host code."""

    def __init__(self, prompt: BasePromptTemplate[Any]) -> None:
        """Keep it; templates may change between runs."""
        self._prompt = prompt
        self._is_core = type(prompt).__module__.startswith(_PROMPTS)

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Format it."""
        if not self._is_core or _asks_selector(self._prompt):
            return (yield Host(self._prompt, value, frame.config, kwargs))
        return self._prompt._format_prompt_with_error_handling(value)


class Read(Operation):
    """An output parser. One with an asynchronous side of its own is host code on a loop."""

    def __init__(self, parser: BaseLLMOutputParser[Any]) -> None:
        """Look at its class."""
        self._parser = parser
        kind = type(parser)
        own = kind.aparse_result not in (BaseLLMOutputParser.aparse_result, BaseOutputParser.aparse_result)
        self._is_async = own or getattr(kind, "aparse", BaseOutputParser.aparse) is not BaseOutputParser.aparse

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Read it."""
        if self._is_async and frame.is_async:
            return (yield Host(self._parser, value, frame.config, kwargs))  # type: ignore[arg-type]  # a runnable, by its node
        is_message = isinstance(value, BaseMessage)
        return self._parser.parse_result([ChatGeneration(message=value) if is_message else Generation(text=value)])


class Take(Operation):
    """One key of a dict, or some."""

    def __init__(self, pick: Runnable[Any, Any]) -> None:
        """Keep it."""
        self._pick: Any = pick

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Pick; LangChain's own refuses keyword arguments, and says so itself."""
        if kwargs:
            return (yield Host(self._pick, value, frame.config, kwargs))
        return self._pick._pick(value)


def _asks_selector(prompt: Any) -> bool:
    """Whether examples are chosen at every call, by code that may do anything."""
    if getattr(prompt, "example_selector", None) is not None:
        return True
    return any(_asks_selector(message) for message in getattr(prompt, "messages", ()))

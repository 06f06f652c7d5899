"""The error tree: every exception that this project raises on purpose.

Each class also subclasses the builtin that a caller would expect, so ``except ValueError`` works without importing us::

    SglError
    ├── InvalidArgumentError (ValueError)      an argument: what was given, what was expected, the cure
    │   ├── UnknownOptionError (TypeError)     a keyword nobody knows, with the nearest known one
    │   ├── ContextLengthError                 prompt and budget do not fit the context or the KV pool
    │   └── GrammarError                       a regex, schema, grammar or list of choices that cannot be used; says why
    ├── ModelError (RuntimeError)
    │   ├── ModelNotFoundError (LookupError)   no such folder, file or name; says how to fetch it
    │   ├── ModelFormatError (ValueError)      the files are there and cannot be used
    │   └── UnsupportedModelError (ValueError) the architecture fails the start-up probe
    ├── TemplateError (ValueError)             the chat template is absent or refuses the conversation
    ├── MissingExtraError (ImportError)        an optional dependency, with its install line
    ├── NotYetAvailableError (NotImplementedError)
    ├── EngineError (RuntimeError)
    │   ├── EngineShutdown                     the engine was closed
    │   └── EngineStepError                    a forward pass failed; the cause is chained
    ├── RequestError (RuntimeError)
    │   ├── QueueFull                          more waiting requests than ``max_queued``
    │   ├── PoolExhaustedError (MemoryError)   the KV pool cannot hold it
    │   ├── RequestAborted                     somebody aborted it while a program was waiting
    │   ├── DeadlineExceeded (TimeoutError)
    │   ├── NumericsError (ArithmeticError)    NaN logits in this request's row
    │   └── VerificationError                  computed again without the cache, the output was another
    └── ProgramError (RuntimeError)
        ├── VariableNotFoundError (KeyError)
        ├── StreamClosedError                  writing to a joined fork, or to a stream that failed
        ├── TraceError (TypeError)             a program cannot be compiled as it is written; names the line and the cure
        ├── GraphError (ValueError)            a graph breaks one of its rules, or cannot be written or read
        └── MoveError (ValueError)             a proposed order of a prompt's parts breaks a rule, which it names

``sgl_core.plugins.errors`` adds the branch ``PluginError``, and the runtime's allocator ``OutOfSlotsError``, which nobody
outside the scheduler sees. Messages follow one shape: the argument, what was given, what was expected, the cure. They never hold prompt text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = [
    "ContextLengthError",
    "DeadlineExceeded",
    "EngineError",
    "EngineShutdown",
    "EngineStepError",
    "GrammarError",
    "GraphError",
    "InvalidArgumentError",
    "MissingExtraError",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "MoveError",
    "NotYetAvailableError",
    "NumericsError",
    "PoolExhaustedError",
    "ProgramError",
    "QueueFull",
    "RequestAborted",
    "RequestError",
    "SglError",
    "StreamClosedError",
    "TemplateError",
    "TraceError",
    "UnknownOptionError",
    "UnsupportedModelError",
    "VariableNotFoundError",
    "VerificationError",
    "check_options",
]


class SglError(Exception):
    """Root of the tree."""


class InvalidArgumentError(SglError, ValueError):
    """An argument has a value that cannot be used.

    Args:
        argument: the name as the caller typed it.
        given: the value; shown by ``repr`` and cut to a readable length. Never pass prompt text.
        expected: what would have been accepted.
        cure: what to do, one sentence; optional.
    """

    def __init__(self, argument: str, given: object, expected: str, cure: str = "") -> None:
        """Build the message from its four parts."""
        self.argument = argument
        self.given = given
        self.expected = expected
        self.cure = cure
        shown = repr(given)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        message = f"{argument}: got {shown}, expected {expected}."
        super().__init__(f"{message} {cure}" if cure else message)

    def renamed(self, names: Mapping[str, str]) -> InvalidArgumentError:
        """The same error by the caller's own names of arguments, for whoever passes them on under others.

        Args:
            names: name in this error -> name that the caller typed.
        """
        argument, expected = self.argument, self.expected
        for name, typed in names.items():
            argument, expected = argument.replace(name, typed), expected.replace(name, typed)
        return InvalidArgumentError(argument, self.given, expected, self.cure)


class UnknownOptionError(InvalidArgumentError, TypeError):
    """A keyword that the callee does not know; ``cure`` names the nearest known one."""

    def __init__(self, where: str, option: str, known: Iterable[str]) -> None:
        """Name the option, the place and the nearest known option."""
        names = sorted(known)
        near = difflib.get_close_matches(option, names, n=1)
        cure = f"Did you mean {near[0]!r}?" if near else ""
        super().__init__(where, option, f"one of {', '.join(names)}", cure)


class ContextLengthError(InvalidArgumentError):
    """Prompt and explicit budget do not fit.

    Args:
        prompt_tokens: tokens in the prompt.
        max_new_tokens: the explicit budget, or None when the prompt alone is too long.
        limit_tokens: what fits.
        limit: what the limit is, in words ("the model's context", "the KV pool").
    """

    def __init__(self, prompt_tokens: int, max_new_tokens: int | None, limit_tokens: int, limit: str) -> None:
        """Say the numbers and the two cures."""
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.limit_tokens = limit_tokens
        budget = "" if max_new_tokens is None else f" + max_new_tokens={max_new_tokens}"
        room = f"at most {limit_tokens} tokens in total"
        if max_new_tokens is None:
            room = f"at most {limit_tokens - 1} tokens, which leaves room for a new one"
        super().__init__(
            "prompt",
            f"{prompt_tokens} tokens{budget}",
            f"{room} ({limit})",
            "Shorten the prompt or lower max_new_tokens; nothing is truncated in silence.",
        )


class GrammarError(InvalidArgumentError):
    """A constraint on the output that cannot be used: malformed, too large, impossible, or too long for the budget.

    Args:
        argument: "regex", "json_schema", "grammar", "choices" or "stop_regex".
        reason: what is wrong with it, in words that hold none of the constraint's text.
        cure: what to do, one sentence; optional.
        shortest_tokens: tokens of the shortest completion known, where the budget is the trouble; else None.
    """

    def __init__(self, argument: str, reason: str, cure: str = "", *, shortest_tokens: int | None = None) -> None:
        """Build the message from its parts."""
        self.reason = reason
        self.shortest_tokens = shortest_tokens
        super().__init__(argument, reason, "a constraint that can be compiled and completed", cure)
        self.args = (f"{argument}: {reason}. {cure}".rstrip(),)


class ModelError(SglError, RuntimeError):
    """A model cannot be found, read or used."""


class ModelNotFoundError(ModelError, LookupError):
    """No such folder, file or cached name."""


class ModelFormatError(ModelError, ValueError):
    """The model's files are there, but damaged, unsafe or of an unknown kind."""


class UnsupportedModelError(ModelError, ValueError):
    """The architecture does not run on our attention; found by the start-up probe."""


class TemplateError(SglError, ValueError):
    """The tokenizer has no chat template, or its template refuses this conversation."""


class MissingExtraError(SglError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, missing: str) -> None:
        """Name the missing module and the install line."""
        self.extra = extra
        super().__init__(f"{missing} is not installed; run: pip install 'sgl-core[{extra}]'")


class NotYetAvailableError(SglError, NotImplementedError):
    """A documented feature that this version does not have; the message says what to use meanwhile."""


class EngineError(SglError, RuntimeError):
    """The engine as a whole."""


class EngineShutdown(EngineError):
    """The engine was closed before the request finished, or is closed already."""


class EngineStepError(EngineError):
    """A forward pass failed; requests in that batch end with this error, others go on. ``__cause__`` has the reason."""


class RequestError(SglError, RuntimeError):
    """One request."""


class QueueFull(RequestError):
    """The waiting queue is at ``max_queued``."""


class PoolExhaustedError(RequestError, MemoryError):
    """The KV pool cannot hold what was asked for; the message has the numbers."""


class RequestAborted(RequestError):
    """The request was aborted while somebody still needed its value."""


class DeadlineExceeded(RequestError, TimeoutError):
    """The request's ``timeout_s`` passed; its slots are free again."""


class NumericsError(RequestError, ArithmeticError):
    """This request's logits hold NaN or allow no token; its batch mates are untouched."""


class VerificationError(RequestError):
    """An engine with ``verify=True`` computed the output again, alone and without the cache, and got another one."""


class ProgramError(SglError, RuntimeError):
    """A language program is used in a way that has no meaning."""


class VariableNotFoundError(ProgramError, KeyError):
    """A variable that no node of this stream defines."""

    def __str__(self) -> str:
        """Plain text (KeyError would show the repr)."""
        return str(self.args[0])


class StreamClosedError(ProgramError):
    """A node was added to a stream that has been joined or has failed."""


class TraceError(ProgramError, TypeError):
    """A program does something with a value that it will have only when it runs, so it cannot be compiled as it is.

    Args:
        what: what the program does, in words.
        cure: what to write instead.
        place: the line, as ``file:line: source``; empty if it is not known.
        argument: the argument whose value is needed, if it is one.
    """

    def __init__(self, what: str, cure: str, *, place: str = "", argument: str | None = None) -> None:
        """Build the message from its parts."""
        self.what = what
        self.cure = cure
        self.place = place
        self.argument = argument
        at = f" ({place})" if place else ""
        super().__init__(f"{what}{at}. {cure}")


class GraphError(ProgramError, ValueError):
    """A graph that breaks a rule of graphs, or that cannot be written as JSON or read from it."""


class MoveError(ProgramError, ValueError):
    """A proposed order of the parts of a prompt is refused.

    Args:
        rule: the rule that it breaks; one of ``sgl_core.language.movement.RULES``.
        what: which node breaks it, and how.
    """

    def __init__(self, rule: str, what: str) -> None:
        """Name the rule first."""
        self.rule = rule
        super().__init__(f"{rule}: {what}")


def check_options(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown option names.

    Raises:
        UnknownOptionError: for the first name of ``given`` that is not in ``known``.
    """
    names = set(known)
    for option in given:
        if option not in names:
            raise UnknownOptionError(where, option, names)

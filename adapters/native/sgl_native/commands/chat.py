"""``sgl chat``: a conversation on a terminal, or of the lines on standard input."""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sgl_core.errors import SglError
from sgl_core.types import FinishReason, SamplingParams
from sgl_native import engines
from sgl_native.commands.options import add_model_options, engine_config
from sgl_native.conversation import Conversation, hold_conversation
from sgl_native.printable import without_controls
from sgl_native.records import CallUsage

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "main"]

_DESCRIPTION = """\
Talk to a model. Answers go to standard output as they are generated, everything else to standard error. Each turn starts where
the last one ended: what was said before is in the prefix cache, and the line under an answer says how much of it was.
"""
_HELP = """\
/stats          tokens of the conversation so far
/reset          forget the conversation, keep the system prompt
/help           this list
/exit, Ctrl-D   end
Ctrl-C          abort the answer that is being written; what was shown of it stays in the conversation"""
_EPILOG = f"""\
while it runs:
{textwrap.indent(_HELP, "  ")}

examples:
  sgl chat --system "You answer in one sentence."
  echo "Name a river in France." | sgl chat --temperature 0
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "chat",
        parents=[common],
        help="talk to a model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system prompt (default: the model's own, if it has one)")
    parser.add_argument("--temperature", type=float, default=0.2, metavar="T", help="0 is greedy (default: 0.2)")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of one answer at most (default: 512)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the conversation (default: a fresh one)")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Talk until the input ends; 0."""
    from rich.console import Console

    params = SamplingParams(max_new_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    config = engine_config(options)
    notes = Console(stderr=True)
    with notes.status("loading the model"):
        engine = engines.open_engine(config)
    try:
        talk = _TerminalTalk(notes, _typed_lines(notes) if sys.stdin.isatty() else _piped_lines())
        hold_conversation(engine, talk, system_prompt=options.system, params=params)
    finally:
        engine.close()
    return 0


def _typed_lines(notes: Console) -> Iterator[str]:
    """Lines that somebody types, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and remembers them

    _note(notes, "/help lists the commands; Ctrl-D ends.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            _note(notes, "")
            return
        except KeyboardInterrupt:
            _note(notes, "\nCtrl-D or /exit ends.")


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


class _TerminalTalk:
    """Leads a conversation with lines: those that begin with a slash are commands, the others are said to the model."""

    def __init__(self, notes: Console, lines: Iterable[str]) -> None:
        self._notes = notes
        self._lines = lines

    def __call__(self, conversation: Conversation) -> None:
        for line in map(str.strip, self._lines):
            if line == "/exit":
                return
            if line.startswith("/"):
                _note(self._notes, _obey(line, conversation))
            elif line:
                self._ask(conversation, line)

    def _ask(self, conversation: Conversation, text: str) -> None:
        try:
            usage = conversation.ask(text, _show)
        except SglError as error:
            sys.stdout.flush()
            _note(self._notes, f"sgl: error: {error}", "red")
            _note(self._notes, "The conversation is as it was before this line; /reset starts a new one.")
            return
        _show("\n")
        _note(self._notes, _cost(usage))


def _obey(command: str, conversation: Conversation) -> str:
    """Do what a command says; returns what to tell about it."""
    if command == "/help":
        return _HELP
    if command == "/reset":
        conversation.reset()
        return "The conversation starts anew."
    if command == "/stats":
        return _stats(conversation)
    return f"There is no command {command!r}.\n{_HELP}"


def _stats(conversation: Conversation) -> str:
    total = conversation.totals()
    share = total.cached_tokens / total.prompt_tokens if total.prompt_tokens else 0.0
    return (
        f"answers: {len(conversation.usages)}; {total.prompt_tokens:,} prompt tokens, {total.cached_tokens:,} cached "
        f"({share:.0%}), {total.prefilled_tokens:,} computed; {total.generated_tokens:,} generated"
    )


def _cost(usage: CallUsage) -> str:
    if usage.finish_reason == FinishReason.ABORT:
        return "aborted"
    text = f"{usage.cached_tokens:,} tokens cached, {usage.prefilled_tokens:,} new, {usage.generated_tokens:,} generated"
    return f"{text}; cut off there (--max-tokens)" if usage.finish_reason == FinishReason.LENGTH else text


def _show(piece: str) -> None:
    sys.stdout.write(without_controls(piece))
    sys.stdout.flush()


def _note(notes: Console, text: str, style: str = "dim") -> None:
    from rich.text import Text

    notes.print(Text(text, style), soft_wrap=True)

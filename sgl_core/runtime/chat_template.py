"""Turn pieces of a chat template, learnt by rendering conversations whose bodies are sentinels.

``LocalCodec`` asks this module what stands between two bodies. A conversation is rendered with every body replaced by a
sentinel, the text is cut at the sentinels, and the parts are the template's own text. No body of a program is ever
passed to a template, so nothing a user writes can steer it, and errors hold no prompt text. Templates run in transformers' immutable
sandbox only. This module is pure text: it knows no vocabulary and loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sgl_core.errors import ModelFormatError, TemplateError

__all__ = ["ROLES", "SEPARATOR", "Pieces", "TemplateRenderer", "TurnPieces"]

Pieces = tuple[int | str, ...]
"""Control ids and text, in order."""

ROLES = ("system", "user", "assistant")
SEPARATOR = "\n\n"
"""Joins two bodies of one role where the template refuses a second turn of that role."""

_MAX_TEMPLATE_CHARS = 1 << 20
_MAX_RENDERED_CHARS = 1 << 22
_CACHED_RENDERS = 256
_PAD = (" \n", "\n ")


def _sentinel(index: int) -> str:
    """Letters and digits, so that no filter changes it; fixed width, so that none is part of another."""
    return f"Xq7body{index:06d}7qX"


class TemplateRenderer:
    """A compiled template.

    Args:
        source: the Jinja text.
        variables: spellings the template may use (``bos_token``, ...).

    Raises:
        ModelFormatError: the template is too large or does not compile.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        # The public entry passes plain data only, so a date function could not be frozen through it; this is its compiler.
        from jinja2 import meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        if len(source) > _MAX_TEMPLATE_CHARS:
            raise ModelFormatError(f"chat_template: {len(source)} characters, expected at most {_MAX_TEMPLATE_CHARS}.")
        try:
            self._compiled: Any = _compile_jinja_template(source)
        except Exception as error:
            raise ModelFormatError(f"chat_template: does not compile: {error}") from error
        self.uses_date = "strftime_now" in source
        self.uses_tools = "tools" in meta.find_undeclared_variables(self._compiled.environment.parse(source))
        now = datetime.now().astimezone()

        def strftime_now(pattern: str) -> str:  # a date that moved at midnight would change every prefix
            return now.strftime(pattern)

        self._variables: dict[str, Any] = {**variables, "strftime_now": strftime_now}
        self.gaps = lru_cache(maxsize=_CACHED_RENDERS)(self._gaps)

    def render(self, roles: Sequence[str], bodies: Sequence[str], *, generation: bool) -> str:
        """Render a whole conversation, with the generation prompt if asked for.

        Raises:
            TemplateError: the template refuses it, or its output has no reasonable size.
        """
        messages = [{"role": role, "content": body} for role, body in zip(roles, bodies, strict=True)]
        variables = {**self._variables, "messages": messages, "add_generation_prompt": generation}
        try:
            return self._run(variables | {"tools": None, "documents": None})
        except TemplateError as error:
            # Some templates iterate over tools without a test for None; for them the key must be absent.
            try:
                return self._run(variables)
            except TemplateError:
                raise error from error.__cause__

    def _run(self, variables: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        limit = _MAX_RENDERED_CHARS + sum(len(message["content"]) for message in variables["messages"])
        try:
            for part in self._compiled.generate(**variables):
                parts.append(part)
                size += len(part)
                if size > limit:
                    break
        except Exception as error:
            raise TemplateError(f"the chat template refuses these roles: {error}") from error
        if size > limit:
            raise TemplateError(f"the chat template wrote more than {_MAX_RENDERED_CHARS} characters of its own.")
        return "".join(parts)

    def _gaps(self, roles: tuple[str, ...], generation: bool, padded: int = -1) -> tuple[str, ...]:
        """The template's text around the bodies: one part before each body and one behind the last.

        Args:
            roles: one per turn.
            generation: with the generation prompt.
            padded: the turn whose body gets white space at both ends, which then shows in the parts unless stripped.

        Raises:
            TemplateError: the template refuses these roles, or loses, repeats or moves a body.
        """
        marks = [_sentinel(index) for index in range(len(roles))]
        bodies = list(marks)
        if padded >= 0:
            bodies[padded] = marks[padded].join(_PAD)
        rest = self.render(roles, bodies, generation=generation)
        once = all(rest.count(mark) == 1 for mark in marks)
        parts: list[str] = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not once or not found:
                raise TemplateError(f"the chat template does not show each turn once and in order for roles {list(roles)}.")
            parts.append(part)
        return (*parts, rest)


def _behind(pieces: Pieces, prefix: Pieces) -> Pieces | None:
    """What follows ``prefix`` in ``pieces``; None if they do not start with it."""
    if not prefix:
        return pieces
    if len(prefix) > len(pieces) or pieces[: len(prefix) - 1] != prefix[:-1]:
        return None
    last, want = pieces[len(prefix) - 1], prefix[-1]
    if last == want:
        return pieces[len(prefix) :]
    if isinstance(last, str) and isinstance(want, str) and last.startswith(want):
        return (last[len(want) :], *pieces[len(prefix) :])
    return None


def _lookahead(roles: tuple[str, ...], role: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Conversations in which the new turn may show itself, best first, each with or without generation prompt.

    A system turn shows only with the user turn that carries it (Llama 2). An assistant turn is taken from a conversation
    that goes on, because reasoning templates render the last one differently.
    """
    turns = (*roles, role)
    if role == "system":
        yield (*turns, "user"), True
        yield turns, False
    elif role == "user":
        yield turns, True
        yield (*turns, "assistant"), False
    else:
        yield (*turns, "user"), True
        yield turns, False


class TurnPieces:
    """Openings and closings of turns, as functions of the roles so far. Immutable and thread-safe.

    - **Openings** hold everything between the previous body and the new one, less what the closing already said: the end
      marker of the previous turn, a default system turn, the role header.
    - **An assistant turn is opened by the generation prompt** where the template has one: that is what the model was
      trained to continue, and ids once given are never changed. What the template writes between the generation prompt
      and a *given* body (the space of Llama 2, which a model generates itself) is ``lead``. Where history loses text of
      the generation prompt (an opened think block) a given body stands behind that text; ``notes`` says so.
    - **Closings are eager** for system and user turns where the closing text is the same whatever follows. Those of
      assistant turns, and of roles in ``continued``, come with the next opening; the end of a program closes nothing.
    - **Repeated roles**: where the template refuses two turns of one role in a row, the second continues the first
      behind a blank line.

    Args:
        renderer: the template.
        split: cuts template text at control tokens; the caller's vocabulary decides what those are.
    """

    def __init__(self, renderer: TemplateRenderer, split: Callable[[str], Pieces]) -> None:
        self._renderer = renderer
        self._split = split
        self.continued = frozenset(self._refused_repeats())
        self._closing = lru_cache(maxsize=_CACHED_RENDERS)(self._find_closing)
        self._opening = lru_cache(maxsize=_CACHED_RENDERS)(self._find_opening)
        self._trim = lru_cache(maxsize=_CACHED_RENDERS)(self._find_trim)
        self.prefix_stable = True
        self.notes = tuple(self._describe())

    def collapse(self, roles: Sequence[str]) -> tuple[str, ...]:
        """The turns the template sees: repeated roles in ``continued`` count once."""
        kept: list[str] = []
        for role in roles:
            if not (kept and kept[-1] == role and role in self.continued):
                kept.append(role)
        return tuple(kept)

    def opening(self, roles: Sequence[str], role: str, *, is_open: bool) -> Pieces:
        """Open a turn of ``role`` after ``roles``; with ``is_open`` the last turn has not been closed yet.

        Raises:
            TemplateError: the template refuses this order.
        """
        turns = self.collapse(roles)
        if self.continues(turns, role):
            return (SEPARATOR,)
        pieces = self._opening(turns, role)[0]
        if is_open or not turns:
            return pieces
        rest = _behind(pieces, self._closing(turns))
        return pieces if rest is None else rest

    def closing(self, roles: Sequence[str]) -> Pieces:
        """Close the last turn, as far as that does not depend on what follows."""
        turns = self.collapse(roles)
        return self._closing(turns) if turns else ()

    def continues(self, roles: Sequence[str], role: str) -> bool:
        """Whether a turn of ``role`` continues the last turn instead of opening its own."""
        return bool(roles) and roles[-1] == role and role in self.continued

    def lead(self, roles: Sequence[str], role: str) -> Pieces:
        """Template text between the opening and a given body, which a generation writes itself."""
        turns = self.collapse(roles)
        return () if self.continues(turns, role) else self._opening(turns, role)[1]

    def trim(self, roles: Sequence[str], role: str) -> tuple[bool, bool]:
        """Whether white space at the left and right end of the body of a turn of ``role`` after ``roles`` is dropped."""
        return self._trim(self.collapse(roles), role)

    def _find_trim(self, turns: tuple[str, ...], role: str) -> tuple[bool, bool]:
        continues = self.continues(turns, role)
        if continues:
            turns = turns[:-1]
        at = len(turns)
        for after, generation in _lookahead(turns, role):
            try:
                bare = self._renderer.gaps(after, generation)
                padded = self._renderer.gaps(after, generation, at)
            except TemplateError:
                continue
            left = padded[at] != bare[at] + _PAD[0] or self._swallows(bare[at], left=True)
            right = padded[at + 1] != _PAD[1] + bare[at + 1] or self._swallows(bare[at + 1], left=False)
            return left and not continues, right
        return False, False

    def history(self, messages: Sequence[tuple[str, str]]) -> str:
        """The whole rendering of ``messages`` with an assistant turn behind them, up to where its body begins.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        roles = tuple(role for role, _ in messages)
        mark = _sentinel(len(messages))
        bodies = [*(body for _, body in messages), mark, "and"]
        refusal: TemplateError | None = None
        for after, generation in _lookahead(roles, "assistant"):
            try:
                text, found, _ = self._renderer.render(after, bodies[: len(after)], generation=generation).partition(mark)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if found:
                return text
        raise refusal or TemplateError("the chat template does not show assistant turns.")

    def _swallows(self, gap: str, *, left: bool) -> bool:
        """Whether a control token next to the body takes the white space beside it (``rstrip`` and ``lstrip`` tokens)."""
        return bool(gap) and self._split(gap + " " if left else " " + gap) == self._split(gap)

    def _accepted(self, turns: tuple[str, ...], role: str) -> tuple[str, ...]:
        """The parts of the first conversation that shows the new turn; the refusal of the best one otherwise."""
        refusal: TemplateError | None = None
        for after, generation in _lookahead(turns, role):
            try:
                return self._renderer.gaps(after, generation)
            except TemplateError as error:
                refusal = refusal or error
        raise refusal or TemplateError(f"the chat template has no turn of role {role!r}.")

    def _find_opening(self, turns: tuple[str, ...], role: str) -> tuple[Pieces, Pieces]:
        opening, lead = self._opening_text(turns, role)
        return self._split(opening), self._split(lead)

    def _opening_text(self, turns: tuple[str, ...], role: str) -> tuple[str, str]:
        """Opening and lead of a turn, closing of the previous one included."""
        history = self._accepted(turns, role)[len(turns)]
        if role != "assistant" or not turns:
            return history, ""
        try:
            prompt = self._renderer.gaps(turns, True)[-1]
            ignored = prompt == self._renderer.gaps(turns, False)[-1]
        except TemplateError:
            return history, ""
        lead = history.removeprefix(prompt) if history.startswith(prompt) else ""
        # Without a generation prompt the model answers right behind the user's turn; that is the place before the body
        # only if nothing but white space is missing.
        if ignored and (lead.strip() or not history.startswith(prompt)):
            return history, ""
        return prompt, lead

    def _find_closing(self, turns: tuple[str, ...]) -> Pieces:
        if turns[-1] == "assistant" or turns[-1] in self.continued:
            return ()
        try:
            closer = self._split(self._renderer.gaps(turns, False)[-1])
        except TemplateError:
            return ()
        for role in ROLES:
            try:
                following = self._opening_text(turns, role)[0]
            except TemplateError:
                continue
            if _behind(self._split(following), closer) is None:
                return ()
        return closer

    def _accepts(self, *roles: str) -> bool:
        try:
            self._renderer.gaps(roles, roles[-1] != "assistant")
        except TemplateError:
            return False
        return True

    def _refused_repeats(self) -> Iterator[str]:
        for role, once, twice in (
            ("system", ("system", "user"), ("system", "system", "user")),
            ("user", ("user",), ("user", "user")),
            ("assistant", ("user", "assistant", "user"), ("user", "assistant", "assistant", "user")),
        ):
            if self._accepts(*once) and not self._accepts(*twice):
                yield role

    def _describe(self) -> Iterator[str]:
        """Peculiarities of the template, for ``engine.info()``; sets ``prefix_stable``."""
        unstable = sorted(self._unstable_roles())
        if unstable:
            self.prefix_stable = False
            yield f"template: not prefix-stable ({', '.join(unstable)})"
        if self._renderer.uses_date:
            yield "template: date frozen at load"
        if not self._accepts("system", "user"):
            yield "template: refuses the system role"
        if self.continued:
            yield f"template: a repeated turn continues the last one ({', '.join(sorted(self.continued))})"
        stripped = sorted(role for role, before in (("user", ()), ("assistant", ("user",))) if any(self.trim(before, role)))
        if stripped:
            yield f"template: strips bodies ({', '.join(stripped)})"

    def _unstable_roles(self) -> set[str]:
        """Roles whose last turn is rendered otherwise once the conversation goes on; the generation prompt likewise."""
        unstable: set[str] = set()
        for roles in (("user", "assistant", "user", "assistant", "user"), ("system", "user", "assistant", "user")):
            for shorter, longer in _neighbours(roles):
                try:
                    text = self._joined(shorter)
                    if not self._joined(longer).startswith(text):
                        unstable.add(shorter[-1])
                except TemplateError:
                    continue
        try:
            if not self._accepted(("user",), "assistant")[1].startswith(self._opening_text(("user",), "assistant")[0]):
                unstable.add("generation prompt")
        except TemplateError:
            pass
        return unstable

    def _joined(self, roles: tuple[str, ...]) -> str:
        gaps = self._renderer.gaps(roles, False)
        return "".join(gap + _sentinel(index) for index, gap in enumerate(gaps[:-1])) + gaps[-1]


def _neighbours(roles: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Every proper prefix of ``roles`` with the one that is a turn longer."""
    return ((roles[:count], roles[: count + 1]) for count in range(1, len(roles)))

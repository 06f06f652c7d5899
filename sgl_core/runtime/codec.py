"""Text to token ids and back, for a model on this machine.

``LocalCodec`` implements ``sgl_core.backend.TextCodec``. The engine builds one when it loads a model; the language borrows
it for every stream. It owns two private copies of the tokenizer: one that recognises control tokens (template text and
``sgl.raw``) and one that does not (everything else). The switch between the two is mutable state of a tokenizer object and
leaks between threads, so it is set once per copy and never touched again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from tokenizers import Tokenizer

from sgl_core.errors import InvalidArgumentError, ModelFormatError, ModelNotFoundError, TemplateError
from sgl_core.runtime.chat_template import ROLES, Pieces, TemplateRenderer, TurnPieces
from sgl_core.runtime.detokenizer import StopMatcher, StreamDecoder
from sgl_core.types import TurnState

__all__ = ["LocalCodec"]

_log = logging.getLogger(__name__)

_WORD_END = re.compile(r"[^\W_](?=[ \t\r\n])")
_WORD_ENDS_TRIED = 8
_NO_TEMPLATE = (
    "this model's tokenizer has no chat template. Write the prompt as plain text without roles, "
    "or use a model that was trained on chats."
)
_TOOL_TEMPLATE = "tool_use"
"""What transformers calls the template for tools where a tokenizer has several."""
_REMEMBERED_TEXTS = 1024
_LONGEST_REMEMBERED = 2048
"""Characters. Together these bound what remembered encodings hold to some 20 MB."""
_SELF_TEST_SPELLINGS = 64
_SELF_TEST_BODIES = ("\n first 12", "Say 3 + 45. ", "It is 48.\n", "  last\n\nline 007")


class LocalCodec:
    """Text to ids and back. Pure, thread-safe, no torch.

    **Control tokens** are the added tokens that the tokenizer marks as special, and other added tokens that the chat
    template frames turns with (some releases forget the mark). ``encode`` never yields one of them: their spellings are
    ordinary text there. Other added tokens (``<think>``, runs of spaces) are vocabulary: ``encode`` yields them.

    **Turns** come from the model's own chat template, see ``TurnPieces``. At construction two conversations are joined
    from pieces and compared with the template's whole rendering. If they differ, ``turns_exact`` is False and
    ``template_notes`` says so: the program's own ids win, they are the ones that are cached and generated from. If the
    control tokens differ although the template is prefix-stable, vocabulary and template do not belong together.

    Args:
        tokenizer: a transformers fast tokenizer, loaded once by the caller and only read here.

    Raises:
        ModelFormatError: not a fast tokenizer, or the template does not compile or fails the self-test.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelFormatError(
                f"tokenizer: got {type(tokenizer).__name__}, expected a fast tokenizer. "
                "Use a release of the model that has a tokenizer.json."
            )
        source = _template_source(tokenizer)
        spelled = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        renderer = TemplateRenderer(source, spelled) if source is not None else None
        self._knows_tools = _has_tool_template(tokenizer) or (renderer is not None and renderer.uses_tools)
        serialised = _with_framing_tokens(backend, renderer)
        self._serialised = serialised
        self._trusted = _clone(serialised, controls=True)
        self._plain = _clone(serialised, controls=False)
        self._fingerprint = hashlib.sha256(f"{serialised}\0{source}".encode()).hexdigest()[:32]

        added = self._trusted.get_added_tokens_decoder()
        self._controls = {token: entry.content for token, entry in added.items() if entry.special}
        self._control_ids = frozenset(self._controls)
        longest_first = sorted(self._controls.values(), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # A text token with a space inside could still be completed across any word end.
        self._words_are_safe = not any(re.search(r"\S\s", e.content) for e in added.values() if not e.special)
        self._begin = self._find_begin()

        # The constants of programs and prompt templates come again with every call.
        self._remembered_ids = lru_cache(maxsize=_REMEMBERED_TEXTS)(lambda text: tuple(self._text_ids(text)))

        self._loss_lock = Lock()
        self._lossy_texts = 0
        self._turns = TurnPieces(renderer, self._split) if renderer is not None else None
        self._notes: tuple[str, ...] = self._turns.notes if self._turns is not None else ("template: none",)
        self._turns_exact = self.self_test()
        if self._turns is not None and not self._turns_exact:
            self._notes += ("template: turns differ from the whole rendering; the program's own ids win",)

    @classmethod
    def from_folder(cls, path: str | Path) -> LocalCodec:
        """Load the tokenizer of a model folder: local files only, no code from the folder.

        Raises:
            ModelNotFoundError: no such folder.
            ModelFormatError: the folder asks for its own code, or holds no fast tokenizer.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ModelNotFoundError(f"path: got {str(folder)!r}, expected a model folder with a tokenizer.json.")
        for name in ("tokenizer_config.json", "config.json"):
            _refuse_remote_code(folder / name)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFormatError(f"{folder.name}: no usable tokenizer: {error}") from error
        return cls(tokenizer)

    @property
    def fingerprint(self) -> str:
        """Identifies vocabulary, merges, splits and template."""
        return self._fingerprint

    @property
    def knows_tools(self) -> bool:
        """Whether the template uses ``tools``, or the tokenizer has a second template for them."""
        return self._knows_tools

    @property
    def serialised(self) -> str:
        """The tokenizer as JSON text, every control token marked special; for those who build their own from it."""
        return self._serialised

    @property
    def vocab_size(self) -> int:
        """Tokens with a spelling, added ones included. The model's embedding may have more rows."""
        return int(self._trusted.get_vocab_size(with_added_tokens=True))

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that ``encode`` never yields and ``decode`` leaves out."""
        return self._control_ids

    @property
    def template_notes(self) -> tuple[str, ...]:
        """Peculiarities of the template, one line each, for ``engine.info()``."""
        return self._notes

    @property
    def turns_exact(self) -> bool:
        """Whether joined turns equal the template's whole rendering on the self-test's conversations."""
        return self._turns_exact

    def encode(self, text: str) -> tuple[int, ...]:
        """Program or user text; never yields a control id.

        Characters without any token are dropped, see ``lossy``.

        Raises:
            InvalidArgumentError: ``text`` is no str, or holds half a surrogate pair.
        """
        if isinstance(text, str) and len(text) <= _LONGEST_REMEMBERED:
            return self._remembered_ids(text)
        return tuple(self._text_ids(text))

    def encode_trusted(self, text: str) -> tuple[int, ...]:
        """An author's literal; spellings of control tokens become their ids."""
        return tuple(_encoding(self._trusted, text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out."""
        return str(self._trusted.decode(list(ids), skip_special_tokens=True))

    def spell(self, token: int) -> str:
        """The spelling of one control id.

        Raises:
            InvalidArgumentError: no control id.
        """
        spelling = self._controls.get(token)
        if spelling is None:
            raise InvalidArgumentError("token", token, "the id of a control token", "Use decode() for text tokens.")
        return spelling

    def special_spelling(self, text: str) -> str | None:
        """The first spelling of a control token inside ``text``, or None; used for a warning only."""
        match = self._control_pattern.search(text)
        return match.group() if match else None

    def begin(self) -> tuple[int, ...]:
        """What a prompt without turns starts with: what the tokenizer itself puts before plain text, BOS or nothing."""
        return self._begin

    def lossy(self, text: str) -> bool:
        """Whether ``decode(encode(text))`` differs from ``text``; the first such text is logged, without its content.

        Vocabularies without a token for some byte drop it in silence, and normalisers rewrite characters.
        """
        back = self.decode(self.encode(text))
        if back == text:
            return False
        with self._loss_lock:
            self._lossy_texts += 1
            first = self._lossy_texts == 1
        if first:
            lost = (Counter(text) - Counter(back)).total()
            _log.warning(
                "this model's vocabulary cannot represent a text exactly: %d of %d characters are lost or rewritten; "
                "further texts are counted, not logged",
                lost,
                len(text),
            )
        return True

    @property
    def lossy_texts(self) -> int:
        """How many texts ``lossy`` has found so far."""
        return self._lossy_texts

    def stable_len(self, text: str) -> int:
        """Leading ids of ``encode(text)`` that no continuation of ``text`` can change.

        Tokenizers split text into words before merging, and no split rule in use joins a letter or digit with white space
        behind it. So the ids before the last such place are final. (The start of the last word is not enough: ``"l"``
        behind ``"x'l"`` moves two splits.) Vocabularies that do not split into words have no such place: 0.
        """
        if not self._words_are_safe:
            return 0
        encoding = _encoding(self._plain, text)
        if not self._control_ids.isdisjoint(encoding.ids):
            return 0
        words, offsets = encoding.word_ids, encoding.offsets
        count = len(offsets)
        for match in reversed(deque(_WORD_END.finditer(text), maxlen=_WORD_ENDS_TRIED)):
            place = match.end()
            while count and offsets[count - 1][1] > place:
                count -= 1
            inside = 0 < count < len(offsets)
            if inside and words[count - 1] != words[count] and offsets[count][0] >= place:
                return count
        return 0

    def open_turn(self, role: str, turns: TurnState) -> Pieces:
        """Pieces that open a turn of ``role`` after ``turns``: the default system turn where there is one, BOS once.

        Where the template refuses a second turn of one role the answer is a blank line: the turn goes on.

        Raises:
            InvalidArgumentError: an unknown role.
            TemplateError: there is no template, or it refuses this order of roles.
        """
        pieces = self._template(role).opening(turns.roles, role, is_open=turns.is_open)
        if not turns.roles and self._begin and pieces[:1] != self._begin[:1]:
            return (*self._begin, *pieces)
        return pieces

    def close_turn(self, role: str, turns: TurnState) -> Pieces:
        """Pieces that close the last turn of ``turns``, as far as they do not depend on what follows.

        Empty for assistant turns: their end comes with the next opening.

        Raises:
            InvalidArgumentError: an unknown role, or not the role of the last turn.
            TemplateError: there is no template.
        """
        template = self._template(role)
        if turns.roles[-1:] != (role,):
            raise InvalidArgumentError("role", role, "the role of the last turn of the stream")
        return template.closing(turns.roles)

    def body_lead(self, role: str, turns: TurnState) -> Pieces:
        """Template text between ``open_turn(role, turns)`` and a *given* body, which a generation writes itself.

        Llama 2 puts a space there; most templates nothing. Raises as ``open_turn``.
        """
        return self._template(role).lead(turns.roles, role)

    def body_trim(self, role: str, turns: TurnState) -> tuple[bool, bool]:
        """Whether the template drops white space at the left and right end of the body that ``open_turn`` would begin.

        Pieces hold no bodies, so a caller that wants the template's exact text strips the body itself. Raises as
        ``open_turn``.
        """
        return self._template(role).trim(turns.roles, role)

    def join_turns(self, messages: Iterable[tuple[str, str]], *, open_assistant: bool = False) -> tuple[int, ...]:
        """Ids of a whole conversation, joined from turn pieces as a stream would, with leads and trims.

        Args:
            messages: (role, body) in order.
            open_assistant: open an assistant turn at the end.

        Raises:
            TemplateError: as ``open_turn``.
        """
        turns = TurnState()
        pieces: list[int | str] = []
        for role, body in messages:
            left, right = self.body_trim(role, turns)
            body = body.lstrip() if left else body
            body = body.rstrip() if right else body
            pieces += (*self.open_turn(role, turns), *self.body_lead(role, turns), body)
            turns = TurnState((*turns.roles, role), is_open=False)
            pieces += self.close_turn(role, turns)
        if open_assistant:
            pieces += self.open_turn("assistant", turns)
        return self._join(pieces)

    def stream_decoder(
        self,
        stops: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        *,
        stop_regex: StopMatcher | None = None,
        skip: str = "",
    ) -> StreamDecoder:
        """A decoder for one generation that continues ``prompt_ids``; see ``StreamDecoder`` for the arguments."""
        return StreamDecoder(
            self._trusted, stops, stop_regex=stop_regex, prompt_ids=prompt_ids, control_ids=self._control_ids, skip=skip
        )

    def self_test(self) -> bool:
        """Join two conversations from pieces and compare them with the template's whole rendering.

        Returns:
            Whether all ids are equal, up to where an assistant's body begins; False without a template.

        Raises:
            ModelFormatError: a body yields a control token, or the control tokens of a prefix-stable template differ.
        """
        if self._turns is None:
            return False
        exact = True
        spellings = "".join(list(self._controls.values())[:_SELF_TEST_SPELLINGS])
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
            messages = list(zip(roles, _SELF_TEST_BODIES, strict=False))
            hostile = [(role, spellings + body) for role, body in messages]
            try:
                joined = self.join_turns([*messages, ("assistant", "")])
                controls = self._only_controls(self.join_turns([*hostile, ("assistant", "")]))
                whole = self.encode_trusted(self._turns.history(messages))
            except TemplateError:
                continue  # a refusal (no system role) is an answer, not a fault
            if controls != self._only_controls(joined):
                raise ModelFormatError("tokenizer: spellings of control tokens in user text yield control tokens.")
            if whole[:1] != self._begin[:1]:
                whole = self._begin + whole
            if joined == whole:
                continue
            exact = False
            if self._turns.prefix_stable and self._only_controls(whole) != controls:
                raise ModelFormatError(
                    "chat_template: its control tokens are not those of the vocabulary. "
                    "Use the tokenizer and template of one release."
                )
        return exact

    def _only_controls(self, ids: Iterable[int]) -> list[int]:
        return [token for token in ids if token in self._control_ids]

    def _template(self, role: str) -> TurnPieces:
        if role not in ROLES:
            raise InvalidArgumentError("role", role, f"one of {', '.join(ROLES)}")
        if self._turns is None:
            raise TemplateError(_NO_TEMPLATE)
        return self._turns

    def _split(self, text: str) -> Pieces:
        """Cut template text at its control tokens. A token may take white space beside it; so would a whole encoding."""
        encoding = _encoding(self._trusted, text)
        pieces: list[int | str] = []
        at = 0
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._control_ids:
                if start > at:
                    pieces.append(text[at:start])
                pieces.append(token)
                at = end
        if at < len(text):
            pieces.append(text[at:])
        return tuple(pieces)

    def _join(self, pieces: Iterable[int | str]) -> tuple[int, ...]:
        """Encode everything between two control ids as one string."""
        ids: list[int] = []
        tail = ""
        for piece in pieces:
            if isinstance(piece, str):
                tail += piece
                continue
            ids += self._text_ids(tail)
            ids.append(piece)
            tail = ""
        return (*ids, *self._text_ids(tail))

    def _text_ids(self, text: str) -> list[int]:
        encoding = _encoding(self._plain, text)
        ids: list[int] = encoding.ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # Some vocabularies hold control tokens as ordinary entries too, or mark unknown text with one. Cut through the
        # spelling, so that it cannot be found whole; what has no other spelling is dropped like a byte without a token.
        at = next(index for index, token in enumerate(ids) if token in self._control_ids)
        start, end = encoding.offsets[at]
        if end - start < 2:
            return self._text_ids(text[:start]) + self._text_ids(text[max(end, start + 1) :])
        return self._text_ids(text[: start + 1]) + self._text_ids(text[start + 1 :])

    def _find_begin(self) -> tuple[int, ...]:
        probe = "a"
        bare = self._trusted.encode(probe, add_special_tokens=False).ids
        full = self._trusted.encode(probe, add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start])
        return ()


def _encoding(tokenizer: Tokenizer, text: str) -> Any:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
        given = "a str with half a surrogate pair" if isinstance(text, str) else type(text).__name__
        raise InvalidArgumentError("text", given, "a str of valid Unicode", "Decode bytes with errors='replace'.") from None


def _clone(serialised: str, *, controls: bool) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(serialised)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = not controls  # not part of the serialised form
    return tokenizer


def _template_source(tokenizer: Any) -> str | None:
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, dict):  # several named templates; roles use the ordinary one
        source = source.get("default")
    return source if isinstance(source, str) and source else None


def _has_tool_template(tokenizer: Any) -> bool:
    named = getattr(tokenizer, "chat_template", None)
    return isinstance(named, dict) and _TOOL_TEMPLATE in named


def _with_framing_tokens(backend: Tokenizer, renderer: TemplateRenderer | None) -> str:
    """The serialised tokenizer, with every added token that frames turns marked special."""
    serialised = str(backend.to_str())
    unmarked = [entry.content for entry in backend.get_added_tokens_decoder().values() if not entry.special]
    if renderer is None or not unmarked:
        return serialised
    framing = ""
    for roles in (("user", "assistant", "user"), ("system", "user", "assistant", "user")):
        try:
            framing += "\0".join(renderer.gaps(roles, False))
        except TemplateError:
            continue
    promoted = {content for content in unmarked if content.strip() and content in framing}
    if not promoted:
        return serialised
    data = json.loads(serialised)
    for entry in data["added_tokens"]:
        if entry["content"] in promoted:
            entry["special"] = True
    return json.dumps(data, ensure_ascii=False)


def _refuse_remote_code(path: Path) -> None:
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFormatError(f"{path.name}: not valid JSON; fetch the file again.") from error
    if isinstance(config, dict) and "auto_map" in config:
        raise ModelFormatError(
            f"{path.name}: 'auto_map' asks for code from the model folder, which is never run. "
            "Use a release of the model that needs no code of its own."
        )

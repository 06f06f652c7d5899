"""Turn pieces of seven template shapes against the templates' own whole rendering."""

import itertools
import random
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sgl_core.errors import InvalidArgumentError, ModelFormatError, TemplateError
from sgl_core.runtime.chat_template import TemplateRenderer
from sgl_core.runtime.codec import LocalCodec
from sgl_core.types import TurnState

TEMPLATES = Path(__file__).parent.parent / "fixtures" / "chat_templates"
CONTROLS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "phi3": ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
}
BODIES = ("hello there", " the 12", "of \n", "\n\nthere  ", "a\tb  c", "x3y 456 ", "the\n\n the")
ROLES = ("system", "user", "assistant")
ORDERS = [order for length in range(4) for order in itertools.product(ROLES, repeat=length)]


class FixedDate(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "FixedDate":
        return cls(2024, 7, 26)


class LaterDate(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "LaterDate":
        return cls(2031, 1, 2)


@pytest.fixture
def set_date(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[datetime]], None]:
    def patch(kind: type[datetime]) -> None:
        monkeypatch.setattr("sgl_core.runtime.chat_template.datetime", kind)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", kind)

    return patch


def tokenizer(
    template: str | None,
    controls: Sequence[str] = CONTROLS["chatml"],
    *,
    rstrip: bool = False,
    special: bool = True,
    adds_bos: bool = False,
) -> Any:
    """A small byte-level BPE whose merges reach across spaces and newlines, so that pieces encoded apart would differ."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(
        ["hello there \n\n  system user assistant model\n\n the the and \n\n\n\n   of 12 "] * 4, trainer
    )
    added = [AddedToken(spelling, rstrip=rstrip, normalized=False, special=special) for spelling in controls]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
    bos = controls[0]
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    names = {"bos_token": bos, "eos_token": controls[-1]} if special else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def shipped(name: str, **options: Any) -> Any:
    return tokenizer((TEMPLATES / f"{name}.jinja").read_text(), CONTROLS[name], **options)


def whole(tok: Any, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    chat = [{"role": role, "content": body} for role, body in messages]
    return tuple(tok.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def merged(messages: Sequence[tuple[str, str]], continued: Sequence[str]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for role, body in messages:
        if out and out[-1][0] == role and role in continued:
            out[-1] = (role, f"{out[-1][1]}\n\n{body}")
        else:
            out.append((role, body))
    return out


@pytest.mark.parametrize("name", CONTROLS)
def test_joined_turns_equal_the_whole_rendering_in_every_order_the_template_accepts(
    name: str, set_date: Callable[[type[datetime]], None]
) -> None:
    set_date(FixedDate)
    tok = shipped(name)
    codec = LocalCodec(tok)
    continued = [note for note in codec.template_notes if "repeated" in note]
    collapsing = [role for role in ROLES if continued and role in continued[0]]
    rng = random.Random(7)
    accepted = 0
    for order in ORDERS:
        messages = [(role, rng.choice(BODIES)) for role in (*order, "user")]
        if collapsing:  # strip happens at the ends of a continued turn only
            messages = [(role, body.strip()) for role, body in messages]
        chat = merged(messages, collapsing)
        try:
            expected = whole(tok, chat)
        except Exception:
            with pytest.raises(TemplateError):
                codec.join_turns(messages, open_assistant=True)
            continue
        if [role for role, _ in chat][-1:] != ["user"]:
            continue
        accepted += 1
        assert codec.join_turns(messages, open_assistant=True) == expected, order
    assert accepted >= 5


@pytest.mark.parametrize("name", CONTROLS)
def test_awkward_bodies_join_like_the_whole_rendering(name: str, set_date: Callable[[type[datetime]], None]) -> None:
    set_date(FixedDate)
    tok = shipped(name)
    codec = LocalCodec(tok)
    rng = random.Random(11)
    system = () if "template: refuses the system role" in codec.template_notes else ("system",)
    for _ in range(60):
        roles = (*rng.choice([(), system]), *("user", "assistant") * rng.randrange(3), "user")
        messages = [(role, rng.choice(BODIES)) for role in roles]
        assert codec.join_turns(messages, open_assistant=True) == whole(tok, messages)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_closing_and_the_next_opening_make_up_the_whole_gap(name: str) -> None:
    codec = LocalCodec(shipped(name))

    def flat(pieces: Sequence[int | str]) -> list[int | str]:
        out: list[int | str] = []
        for piece in pieces:
            if isinstance(piece, str) and out and isinstance(out[-1], str):
                out[-1] += piece
            else:
                out.append(piece)
        return out

    seen = 0
    for *before, role in (order for order in ORDERS if len(order) > 1):
        roles = tuple(before)
        try:
            gap = codec.open_turn(role, TurnState(roles, is_open=True))
        except TemplateError:
            continue
        seen += 1
        closing = codec.close_turn(roles[-1], TurnState(roles, is_open=True))
        assert flat((*closing, *codec.open_turn(role, TurnState(roles, is_open=False)))) == flat(gap)
    assert seen >= 3


def test_user_turns_close_at_once_and_assistant_turns_with_the_next_opening() -> None:
    codec = LocalCodec(shipped("chatml"))
    start, end = codec.encode_trusted("<|im_start|><|im_end|>")
    assert codec.close_turn("user", TurnState(("user",), is_open=True)) == (end, "\n")
    assert codec.close_turn("assistant", TurnState(("user", "assistant"), is_open=True)) == ()
    assert codec.open_turn("user", TurnState(("user", "assistant"))) == (end, "\n", start, "user\n")


def test_the_default_system_turn_opens_the_first_user_turn_only() -> None:
    codec = LocalCodec(shipped("chatml"))
    start, end = codec.encode_trusted("<|im_start|><|im_end|>")
    assert codec.open_turn("user", TurnState()) == (start, "system\nYou answer briefly.", end, "\n", start, "user\n")
    assert codec.open_turn("user", TurnState(("system",))) == (start, "user\n")
    assert codec.open_turn("user", TurnState(("user",))) == (start, "user\n")


def test_a_system_turn_shows_through_the_user_turn_that_carries_it() -> None:
    codec = LocalCodec(shipped("llama2"))
    (bos,) = codec.encode_trusted("<s>")
    assert codec.open_turn("system", TurnState()) == (bos, "[INST] <<SYS>>\n")
    assert codec.close_turn("system", TurnState(("system",))) == ()
    assert codec.open_turn("user", TurnState(("system",))) == ("\n<</SYS>>\n\n",)


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_refused_system_role_is_an_error_in_the_templates_own_words(name: str) -> None:
    codec = LocalCodec(shipped(name))
    with pytest.raises(TemplateError, match=r"no system role here|Only user and assistant turns"):
        codec.open_turn("system", TurnState())
    assert "template: refuses the system role" in codec.template_notes


def test_an_order_the_template_refuses_is_an_error_in_the_templates_own_words() -> None:
    codec = LocalCodec(shipped("mistral"))
    with pytest.raises(TemplateError, match="Turns must go user, assistant"):
        codec.open_turn("assistant", TurnState())


@pytest.mark.parametrize("name", ["gemma", "llama2", "mistral"])
def test_a_refused_repeat_continues_the_turn_behind_a_blank_line(name: str) -> None:
    tok = shipped(name)
    codec = LocalCodec(tok)
    assert codec.close_turn("user", TurnState(("user",), is_open=True)) == ()
    for is_open in (True, False):
        assert codec.open_turn("user", TurnState(("user",), is_open=is_open)) == ("\n\n",)
    twice = [("user", "hello"), ("user", "there"), ("assistant", "the"), ("assistant", "of"), ("user", "12")]
    once = [("user", "hello\n\nthere"), ("assistant", "the\n\nof"), ("user", "12")]
    assert codec.join_turns(twice, open_assistant=True) == whole(tok, once)


@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "qwen3"])
def test_a_template_that_accepts_repeats_opens_a_turn_of_its_own(name: str) -> None:
    codec = LocalCodec(shipped(name))
    assert codec.open_turn("user", TurnState(("user",))) != ("\n\n",)
    assert not any("repeated" in note for note in codec.template_notes)


def test_the_trim_probe_sees_which_ends_of_a_body_survive() -> None:
    first = TurnState()
    assert LocalCodec(shipped("gemma")).body_trim("user", first) == (True, True)
    assert LocalCodec(shipped("mistral")).body_trim("user", first) == (False, False)
    llama2 = LocalCodec(shipped("llama2"))
    assert llama2.body_trim("system", first) == (False, False)
    assert llama2.body_trim("user", TurnState(("system",))) == (False, True)
    assert llama2.body_trim("user", TurnState(("user",))) == (False, True)


def test_the_space_before_a_given_answer_is_a_lead_and_no_part_of_the_prompt() -> None:
    codec = LocalCodec(shipped("llama2"))
    asked = TurnState(("user",))
    assert codec.open_turn("assistant", asked) == (" [/INST]",)
    assert codec.body_lead("assistant", asked) == (" ",)
    assert codec.body_lead("user", TurnState()) == ()


def test_a_generated_answer_that_starts_with_its_own_space_needs_no_lead() -> None:
    tok = shipped("llama2")
    codec = LocalCodec(tok)
    pieces = (*codec.open_turn("user", TurnState()), "hello", *codec.open_turn("assistant", TurnState(("user",))), " there")
    text = "".join(codec.spell(piece) if isinstance(piece, int) else piece for piece in pieces)
    given = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    assert tok.apply_chat_template(given, tokenize=False).startswith(text)


def test_a_rewritten_last_answer_is_noted_and_history_wins() -> None:
    tok = shipped("qwen3")
    codec = LocalCodec(tok)
    assert "template: not prefix-stable (assistant)" in codec.template_notes
    answered = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    assert "<think>" in tok.apply_chat_template(answered, tokenize=False)
    assert codec.open_turn("assistant", TurnState(("user",)))[-1] == "assistant\n"
    assert codec.turns_exact


def test_an_open_assistant_turn_is_the_generation_prompt_where_history_drops_part_of_it() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    codec = LocalCodec(tokenizer(template))
    assert codec.open_turn("assistant", TurnState(("user",)))[-1] == "assistant\n<think>\n"
    assert "template: not prefix-stable (generation prompt)" in codec.template_notes
    assert not codec.turns_exact


def test_an_end_marker_at_the_very_end_never_enters_a_closing() -> None:
    codec = LocalCodec(shipped("phi3"))
    assert codec.close_turn("user", TurnState(("user",))) == ()
    assert "template: not prefix-stable (assistant, system, user)" in codec.template_notes


def test_control_tokens_that_take_the_space_beside_them_do_so_in_pieces_too() -> None:
    tok = shipped("phi3", rstrip=True)
    codec = LocalCodec(tok)
    user, end, assistant = codec.encode_trusted("<|user|><|end|><|assistant|>")
    assert codec.open_turn("user", TurnState()) == (user,)
    assert codec.open_turn("assistant", TurnState(("user",))) == (end, assistant)
    messages = [("user", "\n  hello "), ("assistant", " there"), ("user", "the")]
    assert codec.join_turns(messages, open_assistant=True) == whole(tok, messages)


def test_the_date_is_frozen_when_the_codec_is_built(set_date: Callable[[type[datetime]], None]) -> None:
    set_date(FixedDate)
    codec = LocalCodec(shipped("llama3"))
    set_date(LaterDate)
    opening = codec.open_turn("user", TurnState(("user", "assistant", "system")))  # not rendered before
    first = codec.open_turn("user", TurnState())
    assert "\n\nToday Date: 26 Jul 2024\n\n" in first
    assert opening
    assert "template: date frozen at load" in codec.template_notes


def test_bos_comes_once_whoever_writes_it() -> None:
    silent = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    for template in (silent, "{{ bos_token }}" + silent):
        codec = LocalCodec(tokenizer(template, CONTROLS["llama2"], adds_bos=True))
        (bos,) = codec.begin()
        assert codec.join_turns([("user", "hello"), ("assistant", "there"), ("user", "the")]).count(bos) == 1
        assert codec.open_turn("user", TurnState())[0] == bos
    assert LocalCodec(tokenizer(silent, CONTROLS["llama2"])).open_turn("user", TurnState()) == ("user: ",)


def test_no_template_is_an_error_with_a_cure() -> None:
    codec = LocalCodec(tokenizer(None))
    for call in (codec.open_turn, codec.close_turn):
        with pytest.raises(TemplateError, match="plain text without roles"):
            call("user", TurnState(("user",)))
    assert codec.template_notes == ("template: none",)
    assert not codec.turns_exact


def test_an_unknown_role_names_the_known_ones() -> None:
    codec = LocalCodec(shipped("chatml"))
    with pytest.raises(InvalidArgumentError, match="system, user, assistant"):
        codec.open_turn("tool", TurnState())


def test_closing_a_turn_that_is_not_the_last_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="last turn"):
        LocalCodec(shipped("chatml")).close_turn("user", TurnState(("user", "assistant")))


def test_a_template_that_moves_a_body_is_refused_for_those_roles_only() -> None:
    template = (
        "{% set note = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages if m['role'] != 'system' %}"
        "{{ '<|im_start|>' + m['content'] + (note if loop.last else '') + '<|im_end|>' }}{% endfor %}"
    )
    codec = LocalCodec(tokenizer(template))
    with pytest.raises(TemplateError, match="once and in order"):
        codec.open_turn("system", TurnState())
    assert codec.open_turn("user", TurnState()) == codec.encode_trusted("<|im_start|>")


def test_a_template_that_rewrites_bodies_is_noted_as_inexact() -> None:
    template = "{% for m in messages %}{{ '<|im_start|>' + m['content'].replace('Say', 'Tell') + '<|im_end|>' }}{% endfor %}"
    codec = LocalCodec(tokenizer(template))
    assert not codec.turns_exact
    assert any("own ids win" in note for note in codec.template_notes)


def test_control_tokens_that_differ_from_the_whole_rendering_refuse_the_model() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
        "{% if '45' in m['content'] %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ModelFormatError, match="control tokens"):
        LocalCodec(tokenizer(template))


def test_a_template_that_does_not_compile_refuses_the_model() -> None:
    with pytest.raises(ModelFormatError, match="does not compile"):
        LocalCodec(tokenizer("{% for m in messages %}"))


def test_a_template_that_iterates_over_tools_without_a_test_is_rendered_without_them() -> None:
    codec = LocalCodec(
        tokenizer("{% for t in tools %}{% endfor %}{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    )
    assert codec.close_turn("user", TurnState(("user",))) == ("\n",)


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_a_template_that_never_looks_at_tools_knows_none(name: str) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text()
    assert not LocalCodec(tokenizer(source, CONTROLS[name])).knows_tools


@pytest.mark.parametrize(
    "look",
    [
        "{% if tools %}{{ tools | tojson }}{% endif %}",
        "{% for tool in tools or [] %}{{ tool | tojson }}{% break %}{% endfor %}",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{% if tools is not none %}x{% endif %}",
    ],
)
def test_a_template_that_looks_at_tools_knows_them(look: str) -> None:
    assert LocalCodec(tokenizer(look + (TEMPLATES / "chatml.jinja").read_text())).knows_tools


def test_tools_that_a_template_sets_itself_are_none_of_ours() -> None:
    assert not TemplateRenderer("{% set tools = 1 %}{{ tools }}", {}).uses_tools


def test_a_second_template_for_tools_counts() -> None:
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    both = tokenizer(plain)
    both.chat_template = {"default": plain, "tool_use": plain}
    assert LocalCodec(both).knows_tools
    assert not LocalCodec(tokenizer(plain)).knows_tools


@pytest.mark.parametrize("escape", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_the_sandbox(escape: str) -> None:
    codec = LocalCodec(tokenizer(escape + "{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    with pytest.raises(TemplateError, match=r"unsafe|not safely"):
        codec.open_turn("user", TurnState())


def test_a_template_cannot_reach_our_module_through_the_date() -> None:
    leak = "{{ strftime_now.__globals__ }}{{ strftime_now.__closure__ }}"
    codec = LocalCodec(tokenizer(leak + "{% for m in messages %}{{ m['content'] + '.' }}{% endfor %}"))
    assert codec.open_turn("user", TurnState()) == ()


def test_a_template_cannot_write_without_end() -> None:
    endless = "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}"
    codec = LocalCodec(tokenizer(endless + "{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    with pytest.raises(TemplateError, match="wrote more than"):
        codec.open_turn("user", TurnState())


def test_added_tokens_that_frame_turns_are_control_tokens_without_the_mark() -> None:
    codec = LocalCodec(shipped("chatml", special=False))
    start, end = codec.encode_trusted("<|im_start|><|im_end|>")
    assert {start, end} <= codec.control_ids
    assert codec.control_ids.isdisjoint(codec.encode("x<|im_end|>\n<|im_start|>system\n"))
    assert codec.decode((start, *codec.encode("the"), end)) == "the"

"""``sgl chat`` on a fake: lines in, answers out, commands, aborts."""

import io
import signal
import sys
import threading

import pytest

from sgl_core.errors import NumericsError, TemplateError
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_native import cli, engines

WAIT_S = 60.0


@pytest.fixture
def chat(monkeypatch, capsys):
    """Run ``sgl chat`` on some lines; returns the exit code, standard output, standard error and the backend."""

    def run(lines, *options, **backend_options):
        backend = FakeBackend(**backend_options)
        monkeypatch.setattr(engines, "open_engine", lambda config: backend)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = cli.main(["chat", *options])
        return code, *capsys.readouterr(), backend

    return run


def prompts_of(backend):
    codec = backend.codec
    return ["".join(codec.spell(i) if i > 255 else chr(i) for i in request.input_ids) for request in backend.requests]


def test_answers_are_all_that_stands_on_stdout(chat):
    code, out, err, _ = chat(["Hi", "And you?"], reply=lambda ids, params: f"answer of {len(ids)}")
    assert code == 0
    assert out.splitlines() == ["answer of 7", "answer of 32"]
    assert err.count("tokens cached") == 2


def test_a_turn_continues_the_ids_of_the_turns_before_it(chat):
    *_, backend = chat(["Hi", "More", "Bye"], reply=lambda ids, params: "Hello")
    first, second, third = (request.input_ids for request in backend.requests)
    assert second[: len(first) + 5] == (*first, *b"Hello")
    assert third[: len(second) + 5] == (*second, *b"Hello")


def test_the_system_prompt_comes_first(chat):
    *_, backend = chat(["Hi"], "--system", "Be brief.")
    assert prompts_of(backend)[0].startswith("<|begin|><|system|>Be brief.<|end_system|>\n<|user|>Hi<|end_user|>")


def test_options_reach_the_request(chat):
    *_, backend = chat(["Hi"], "--temperature", "0.5", "--max-tokens", "7")
    (request,) = backend.requests
    assert (request.params.temperature, request.params.max_new_tokens) == (0.5, 7)


def test_one_seed_gives_one_conversation_with_noise_of_its_own_in_every_turn(chat):
    seeds = [[request.params.seed for request in chat(["Hi", "More"], "--seed", "3")[3].requests] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 2


def test_options_of_the_model_reach_the_engine(monkeypatch):
    configs = []
    monkeypatch.setattr(engines, "open_engine", lambda config: configs.append(config) or FakeBackend())
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["chat", "--model", "folder", "--dtype", "float32", "--device", "cpu"]) == 0
    (config,) = configs
    assert (config.model, config.dtype, config.device) == ("folder", "float32", "cpu")


@pytest.mark.parametrize("option", [("--temperature", "-1"), ("--max-tokens", "0")])
def test_an_option_out_of_range_is_refused_before_a_model_is_loaded(monkeypatch, capsys, option):
    monkeypatch.setattr(engines, "open_engine", lambda config: pytest.fail("a model was loaded"))
    assert cli.main(["chat", *option]) == 2
    assert "expected" in capsys.readouterr().err


def test_empty_lines_are_passed_over(chat):
    *_, backend = chat(["", "   ", "Hi"])
    assert len(backend.requests) == 1


def test_reset_forgets_the_turns_and_keeps_the_system_prompt(chat):
    _, _, err, backend = chat(["Hi", "/reset", "Hi"], "--system", "Be brief.")
    first, second = prompts_of(backend)
    assert first == second
    assert "starts anew" in err


def test_stats_adds_up_the_answers(chat):
    _, _, err, backend = chat(["Hi", "More", "/stats"], reply=lambda ids, params: "ok")
    prompt = sum(len(request.input_ids) for request in backend.requests)
    assert f"answers: 2; {prompt} prompt tokens, 0 cached (0%), {prompt} computed; 6 generated" in err


def test_stats_before_the_first_answer_are_zero(chat):
    assert "answers: 0; 0 prompt tokens" in chat(["/stats"])[2]


def test_exit_ends_and_leaves_later_lines_alone(chat):
    code, out, _, backend = chat(["/exit", "Hi"])
    assert (code, out, backend.requests) == (0, "", [])


@pytest.mark.parametrize("line", ["/help", "/halp"])
def test_help_lists_the_commands_also_for_one_that_is_unknown(chat, line):
    _, _, err, backend = chat([line])
    assert all(command in err for command in ("/stats", "/reset", "/help", "/exit"))
    assert backend.requests == []


def test_an_answer_that_is_cut_says_so(chat):
    _, _, err, _ = chat(["Hi"], "--max-tokens", "3", reply=lambda ids, params: "much too long")
    assert "cut off there (--max-tokens)" in err


def test_what_a_model_says_cannot_command_the_terminal(chat):
    assert chat(["Hi"], reply=lambda ids, params: "\x1b[2Jgone")[1] == "[2Jgone\n"


def test_a_turn_that_fails_is_reported_and_leaves_no_trace(chat):
    errors = [None, NumericsError("no more ink"), None]
    code, out, err, backend = chat(["Hi", "Bad", "Good"], reply=lambda ids, params: "ok", fail=lambda _: errors.pop(0))
    assert code == 0
    assert out.splitlines() == ["ok", "ok"]
    assert "no more ink" in err
    assert "Bad" not in prompts_of(backend)[2]
    assert "Hi" in prompts_of(backend)[2]


def test_a_conversation_that_is_too_long_is_reported_with_the_cure(chat):
    code, _, err, _ = chat(["x" * 9_000])
    assert code == 0
    assert "/reset" in err


def test_a_model_that_takes_no_system_prompt_is_refused_at_the_start(monkeypatch, capsys):
    class NoSystemCodec(ByteCodec):
        def open_turn(self, role, turns):
            if role == "system":
                raise TemplateError("this template has no system turn")
            return super().open_turn(role, turns)

    monkeypatch.setattr(engines, "open_engine", lambda config: FakeBackend(codec=NoSystemCodec()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    assert cli.main(["chat", "--system", "Be brief."]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "sgl: error: this template has no system turn"


def interrupted_reply(released):
    """A reply that presses Ctrl-C for the first question and waits until the conversation has ended.

    It presses again after a while: Python loses an interrupt that arrives inside a finalizer or a callback of the garbage
    collector (hypothesis installs one).
    """
    first = [True]

    def reply(ids, params):
        if first:
            first.clear()
            for _ in range(10):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                if released.wait(WAIT_S / 10):
                    break
        return "ok"

    return reply


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, whatever a framework in this process has put in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_aborts_the_answer_and_the_conversation_goes_on(chat, ctrl_c):
    released = threading.Event()
    try:
        code, out, err, backend = chat(["Slow", "Quick"], reply=interrupted_reply(released))
    finally:
        released.set()
    assert code == 0
    assert out.split() == ["ok"]
    assert "aborted" in err
    assert "Slow" not in prompts_of(backend)[1]


def test_what_was_shown_before_ctrl_c_stays_in_the_conversation(chat, monkeypatch):
    shown = []
    write = sys.stdout.write

    def write_and_interrupt(text):
        if not shown and text.strip():
            shown.append(text)
            raise KeyboardInterrupt
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", write_and_interrupt)
    code, _, _, backend = chat(["Hi", "And?"], reply=lambda ids, params: "an answer of many deltas")
    assert code == 0
    assert f"<|assistant|>{shown[0]}" in prompts_of(backend)[1]


def test_the_engine_is_closed_at_the_end(chat):
    *_, backend = chat(["Hi"])
    with pytest.raises(Exception, match="closed"):
        backend.submit(backend.requests[0])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_ctrl_c_at_the_prompt_explains_and_ctrl_d_ends(monkeypatch, capsys):
    typed = iter([KeyboardInterrupt, "Hi", EOFError])

    def fake_input(prompt):
        line = next(typed)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", fake_input)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(engines, "open_engine", lambda config: FakeBackend(reply=lambda ids, params: "Hello"))
    assert cli.main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello\n"
    assert "Ctrl-D or /exit ends." in err

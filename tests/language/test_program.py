"""Starting programs: arguments, options, defaults, seeds, the default backend."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, NotYetAvailableError, ProgramError, UnknownOptionError
from sgl_core.testing import FakeBackend
from sgl_core.types import SamplingParams


@sgl.function
def answer(s, question, tone="calm"):
    s += sgl.user(f"{question} ({tone})") + sgl.assistant(sgl.gen("answer", max_tokens=64))
    return tone


pytestmark = pytest.mark.usefixtures("no_default_backend")


def test_arguments_are_given_by_position_or_by_name(backend: FakeBackend) -> None:
    first = answer.run("why?", "dry", backend=backend, temperature=0)
    second = answer.run(question="why?", tone="dry", backend=backend, temperature=0)
    assert first["answer"] == second["answer"]
    assert first.ret_value == "dry"


def test_defaults_of_the_function_hold(backend: FakeBackend) -> None:
    assert answer.run("why?", backend=backend).ret_value == "calm"


def test_a_missing_argument_is_named(backend: FakeBackend) -> None:
    with pytest.raises(InvalidArgumentError, match="question"):
        answer.run(backend=backend)


def test_an_unknown_keyword_is_refused_with_the_nearest_known_one(backend: FakeBackend) -> None:
    with pytest.raises(UnknownOptionError, match="'temperature'"):
        answer.run("why?", backend=backend, temprature=0)


def test_too_many_positions_are_refused(backend: FakeBackend) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 2"):
        answer.run("why?", "dry", "extra", backend=backend)


def test_one_argument_in_both_ways_is_refused(backend: FakeBackend) -> None:
    with pytest.raises(InvalidArgumentError, match="question"):
        answer.run("why?", question="how?", backend=backend)


def test_sampling_options_of_run_are_defaults_for_gens_that_do_not_set_them(backend: FakeBackend) -> None:
    answer.run("why?", backend=backend, temperature=0.5, max_new_tokens=3, top_k=7)
    params = backend.requests[0].params
    assert (params.temperature, params.max_new_tokens, params.top_k) == (0.5, 64, 7)


def test_the_languages_own_temperature_is_one(backend: FakeBackend) -> None:
    answer.run("why?", backend=backend)
    assert backend.requests[0].params.temperature == 1.0


def test_a_parameter_of_the_function_wins_over_an_option_of_the_same_name(backend: FakeBackend) -> None:
    @sgl.function
    def weather(s, temperature, seed, stream):
        s += f"It is {temperature} {seed} {stream}" + sgl.gen("comment", max_tokens=64)

    state = weather.run(temperature="hot", seed="grain", stream=False, backend=backend)
    assert state.text().startswith("<|begin|>") is False
    assert state.text().startswith("It is hot grain False")
    assert backend.requests[0].params.temperature == 1.0


def test_any_keyword_goes_to_a_function_that_takes_any(backend: FakeBackend) -> None:
    @sgl.function
    def free(s, **facts):
        return facts

    assert free.run(colour="red", temperature=0, backend=backend).ret_value == {"colour": "red"}
    assert free.bind(size=3).run(backend=backend).ret_value == {"size": 3}


def test_bind_fixes_arguments_and_positions_fill_the_others(backend: FakeBackend) -> None:
    bound = answer.bind(question="why?")
    assert bound.run("dry", backend=backend).ret_value == "dry"
    assert bound.run(question="how?", backend=backend).text().count("how?") == 1


def test_bind_refuses_unknown_names() -> None:
    with pytest.raises(UnknownOptionError, match="question"):
        answer.bind(qestion="why?")


def test_a_function_needs_a_state_and_parameters_with_names() -> None:
    def without_state():
        pass

    def with_stars(s, *rest):
        pass

    with pytest.raises(InvalidArgumentError, match="first parameter"):
        sgl.function(without_state)
    with pytest.raises(InvalidArgumentError, match="by name"):
        sgl.function(with_stars)
    with pytest.raises(InvalidArgumentError, match="function"):
        sgl.function("answer")


def test_a_function_keeps_its_name_and_docstring() -> None:
    @sgl.function
    def documented(s, x):
        """Say x."""

    assert (documented.__name__, documented.__doc__) == ("documented", "Say x.")
    assert repr(documented) == "<SglFunction documented(x)>"


def test_without_any_backend_the_error_names_the_argument() -> None:
    with pytest.raises(InvalidArgumentError, match="backend="):
        answer.run("why?")


def test_something_that_is_no_backend_is_refused() -> None:
    for wrong in ("localhost", FakeBackend):
        with pytest.raises(InvalidArgumentError, match="backend"):
            answer.run("why?", backend=wrong)
    with pytest.raises(InvalidArgumentError, match="backend"):
        sgl.set_default_backend(3)


def test_the_default_backend_may_be_a_backend_or_a_factory_called_once(backend: FakeBackend) -> None:
    sgl.set_default_backend(backend)
    assert sgl.get_default_backend() is backend
    made: list[FakeBackend] = []

    def factory() -> FakeBackend:
        made.append(backend)
        return backend

    sgl.set_default_backend(factory)
    assert made == []
    answer.run("why?")
    answer.run("how?")
    assert made == [backend]


def test_one_seed_repeats_a_program_and_another_does_not(backend: FakeBackend) -> None:
    texts = [answer.run("why?", backend=backend, seed=seed).text() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_programs_differ(backend: FakeBackend) -> None:
    assert len({answer.run("why?", backend=backend)["answer"] for _ in range(4)}) == 4


def test_every_gen_and_every_fork_has_a_seed_of_its_own(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64) + "b" + sgl.gen("y", max_tokens=64)
        for _ in range(2):
            forks = s.fork(2)
            forks += sgl.gen("z", max_tokens=64)
            forks.join()
        s += sgl.gen("w", max_tokens=64)

    program.run(backend=backend, seed=5)
    seeds = sorted(request.params.seed for request in backend.requests)
    assert len(set(seeds)) == 7
    again = FakeBackend()
    program.run(backend=again, seed=5)
    assert sorted(request.params.seed for request in again.requests) == seeds


def test_an_explicit_seed_is_used_as_it_is_and_reported(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64, seed=42)

    state = program.run(backend=backend)
    assert backend.requests[0].params.seed == state.get_meta_info("x")["seed"] == 42


def test_options_of_a_run_are_checked(backend: FakeBackend) -> None:
    for options in ({"seed": -1}, {"seed": True}, {"namespace": 3}, {"temperature": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            answer.run("why?", backend=backend, **options)
    assert backend.requests == []


def test_requests_carry_namespace_and_the_programs_identity(backend: FakeBackend) -> None:
    for _ in range(2):
        answer.run("why?", backend=backend, namespace="tenant")
    first, second = backend.requests
    assert first.namespace == "tenant"
    assert first.hints.program_id != second.hints.program_id
    assert first.segments == (), "a backend that takes ids needs no segments"


def test_an_output_at_the_default_budget_warns_once_and_names_the_parameter() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x") + sgl.gen("y")

    with FakeBackend(lambda ids, params: "z" * 600) as backend, pytest.warns(UserWarning, match="max_tokens") as record:
        state = program.run(backend=backend)
    assert state.get_meta_info("y")["finish_reason"] == "length"
    assert [warning.filename for warning in record] == [__file__]


def test_an_output_at_an_explicit_budget_warns_of_nothing() -> None:
    with FakeBackend(lambda ids, params: "z" * 600) as backend:
        assert len(answer.run("why?", backend=backend)["answer"]) == 64


def test_run_with_stream_returns_before_the_program_has_ended() -> None:
    gate = threading.Event()
    with FakeBackend(lambda ids, params: str(gate.wait(60))) as backend:
        state = answer.run("why?", backend=backend, stream=True)
        assert not state.run.ended.is_set()
        gate.set()
        state.sync()
        assert state["answer"] == "True"
        assert state.ret_value == "calm"


def test_a_streamed_run_waits_for_variables_its_body_has_yet_to_define(backend: FakeBackend) -> None:
    gate = threading.Event()

    @sgl.function
    def slow(s):
        gate.wait(60)
        s += "a" + sgl.gen("late", max_tokens=64)

    state = slow.run(backend=backend, stream=True)
    threading.Timer(0.05, gate.set).start()
    assert state["late"]
    with pytest.raises(KeyError, match="never"):
        state["never"]


def test_what_a_streamed_body_raises_reaches_readers(backend: FakeBackend) -> None:
    @sgl.function
    def broken(s):
        raise LookupError("in the body")

    state = broken.run(backend=backend, stream=True)
    with pytest.raises(LookupError, match="in the body"):
        state["x"]
    state.sync()
    assert isinstance(state.error(), LookupError)


def test_an_unread_error_of_a_streamed_run_stays_with_its_state() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64)

    with FakeBackend(fail=lambda request: ArithmeticError("no")) as backend:
        state = program.run(backend=backend, stream=True)
        state.sync()
        assert isinstance(state.error(), ArithmeticError)


def test_an_unread_error_of_a_fork_stays_with_a_streamed_run() -> None:
    @sgl.function
    def program(s):
        s.fork(1)[0].__iadd__("a" + sgl.gen("x", max_tokens=64))
        return "reached"

    with FakeBackend(fail=lambda request: ArithmeticError("no")) as backend:
        state = program.run(backend=backend, stream=True)
        assert isinstance(state.error(), ArithmeticError)
        assert state.ret_value == "reached"


def test_threads_that_a_body_starts_may_wait_for_its_streams(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64)
        forks = s.fork(2)
        forks += "b" + sgl.gen("y", max_tokens=64)
        with ThreadPoolExecutor(2) as pool:
            return [*pool.map(lambda fork: fork.text(), forks), pool.submit(s.text).result(60)]

    first, second, own = program.run(backend=backend).ret_value
    assert first.startswith(own + "b")
    assert second.startswith(own + "b")


def test_interrupting_a_body_cancels_its_program() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64)
        raise KeyboardInterrupt

    with FakeBackend(latency_s=60) as backend, pytest.raises(KeyboardInterrupt):
        program.run(backend=backend)


def test_a_prompt_without_any_text_is_an_error_with_a_cure() -> None:
    class WithoutBegin(type(FakeBackend().codec)):
        def begin(self) -> tuple[int, ...]:
            return ()

    @sgl.function
    def program(s):
        s += sgl.gen("x", max_tokens=4)

    with FakeBackend(codec=WithoutBegin()) as backend, pytest.raises(ProgramError, match="append some"):
        program.run(backend=backend)


def test_a_backend_without_a_codec_gets_segments_and_no_ids() -> None:
    class TextOnly(FakeBackend):
        codec = None
        capabilities = FakeBackend.capabilities.__class__(token_ids=False, score=False)

        def _check(self, ids: object, max_new_tokens: object) -> None:
            pass

        def _result(self, request: object, params: SamplingParams, text: str):
            with FakeBackend() as fake:
                return fake._result(request, params, text)

    @sgl.function
    def program(s):
        s += "preface" + sgl.raw("<|x|>") + sgl.user("a" + "b") + sgl.assistant(sgl.gen("x", max_tokens=64))
        s += sgl.user("more" + sgl.gen(max_tokens=64))

    with TextOnly(lambda ids, params: "reply") as backend:
        state = program.run(backend=backend)
        assert state.messages()[1] == {"role": "assistant", "content": "reply"}
        assert backend.requests[1].input_ids == ()
        kinds = [(segment.kind.value, segment.text) for segment in backend.requests[1].segments]
        assert kinds[:4] == [("text", "preface"), ("raw", "<|x|>"), ("turn", "user"), ("text", "ab")]
        assert kinds[4:] == [("turn", "assistant"), ("generated", "reply"), ("turn", "user"), ("text", "more")]
        with pytest.raises(NotYetAvailableError, match="score"):
            sgl.function(lambda s: s.__iadd__(sgl.select("x", ["a"]))).run(backend=backend)


def test_a_body_that_raises_stop_iteration_does_not_hang_arun() -> None:
    @sgl.function
    def program(s):
        next(iter([]))

    async def main() -> None:
        await asyncio.wait_for(program.arun(backend=FakeBackend()), 30)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())

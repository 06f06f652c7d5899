"""What every backend and every codec must do, as classes to subclass: fixtures say what is tested, the tests are here.

::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self):
            with MyBackend() as backend:
                yield backend

Nothing here depends on what a model says. A test of something that the backend does not claim to do, or refuses as not yet
available, is skipped. ``closable_backend`` is closed by a test; override it where ``backend`` is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar
from unittest import SkipTest  # pytest, which this module does not import, takes it for a skip

from sgl_core.backend import Backend, Handle, TextCodec
from sgl_core.errors import ContextLengthError, EngineShutdown, InvalidArgumentError, NotYetAvailableError, SglError
from sgl_core.types import (
    FinishReason,
    GenDelta,
    GenRequest,
    GenResult,
    PrefetchRequest,
    SamplingParams,
    ScoreRequest,
    TokenLogprob,
    TurnState,
)

__all__ = ["BackendContract", "CodecContract"]

_WAIT_S = 120.0  # a guard against hanging, far above any honest duration
_NO_SUCH_ID = 2**31 - 1


@contextlib.contextmanager
def _raises(kind: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


@contextlib.contextmanager
def _skipping_what_is_missing() -> Iterator[None]:
    try:
        yield
    except NotYetAvailableError as error:
        raise SkipTest(str(error)) from error


def _request(backend: Backend, text: str = "The weather today is", **params: object) -> GenRequest:
    codec = backend.codec
    assert codec is not None, "the contract is for backends that take ids"
    fields = {"max_new_tokens": 8, **params}
    return GenRequest((*codec.begin(), *codec.encode(text)), SamplingParams(**fields))  # type: ignore[arg-type]


def _generate(backend: Backend, text: str = "The weather today is", **params: object) -> GenResult:
    return backend.submit(_request(backend, text, **params)).result(_WAIT_S)


class BackendContract:
    """Subclass it and give it a fixture ``backend``, and ``closable_backend`` for one that may be closed."""

    def test_it_satisfies_the_protocol(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)

    def test_a_result_is_the_same_however_often_it_is_read(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend))
        assert handle.result(_WAIT_S) is handle.result(0)
        assert handle.done()
        assert handle.error() is None

    def test_handles_have_ids_of_their_own(self, backend: Backend) -> None:
        handles = [backend.submit(_request(backend)) for _ in range(4)]
        assert len({handle.id for handle in handles}) == 4
        for handle in handles:
            handle.result(_WAIT_S)

    def test_text_is_what_the_ids_say(self, backend: Backend) -> None:
        result = _generate(backend)
        assert backend.codec is not None
        assert backend.codec.decode(result.token_ids) + result.text_behind_ids == result.text

    def test_usage_counts_the_prompt_and_what_was_sampled(self, backend: Backend) -> None:
        request = _request(backend)
        result = backend.submit(request).result(_WAIT_S)
        assert result.usage.prompt_tokens == len(request.input_ids)
        assert 0 <= result.usage.cached_tokens <= result.usage.prompt_tokens
        assert len(result.token_ids) <= result.usage.completion_tokens <= 8

    def test_a_budget_of_one_ends_after_one_token(self, backend: Backend) -> None:
        result = _generate(backend, max_new_tokens=1, ignore_eos=True)
        assert result.usage.completion_tokens == 1
        assert result.finish_reason is FinishReason.LENGTH

    def test_greedy_output_is_repeatable_and_needs_no_seed(self, backend: Backend) -> None:
        first, second = _generate(backend), _generate(backend)
        assert (first.text, first.token_ids) == (second.text, second.token_ids)
        assert first.seed is None

    def test_one_seed_gives_one_sample(self, backend: Backend) -> None:
        first, second = (_generate(backend, temperature=1.0, seed=11) for _ in range(2))
        assert first.token_ids == second.token_ids
        assert first.seed == 11

    def test_without_a_seed_one_is_drawn_and_reported(self, backend: Backend) -> None:
        assert _generate(backend, temperature=1.0).seed is not None

    def test_a_stop_string_cuts_the_text_before_it(self, backend: Backend) -> None:
        whole = _generate(backend, max_new_tokens=16).text
        stop = whole[len(whole) // 2 :][:2]
        assert stop, "the model says nothing to this prompt"
        result = _generate(backend, max_new_tokens=16, stop=(stop,))
        assert result.text == whole[: whole.index(stop)]
        assert result.finish_reason is FinishReason.STOP
        assert result.matched_stop == stop

    def test_a_stop_pattern_cuts_the_text_before_its_match(self, backend: Backend) -> None:
        whole = _generate(backend, max_new_tokens=16).text
        stop = whole[len(whole) // 2 :][:2]
        with _skipping_what_is_missing():
            result = _generate(backend, max_new_tokens=16, stop_regex=f"(?:{_pattern_of(stop)}){{1,2}}")
        assert result.text == whole[: whole.index(stop)]
        assert result.finish_reason is FinishReason.STOP

    def test_text_to_be_healed_is_spelled_before_the_output_and_is_no_part_of_it(self, backend: Backend) -> None:
        if not backend.capabilities.heal:
            raise SkipTest("the backend does not heal")
        request = replace(_request(backend), heal=" ")
        handle = backend.submit(request)
        streamed, result = "".join(delta.text for delta in handle), handle.result(0)
        assert backend.codec is not None
        spelled = backend.codec.decode(request.input_ids + result.healed_ids + result.token_ids)
        assert spelled + result.text_behind_ids == backend.codec.decode(request.input_ids) + " " + result.text
        assert streamed == result.text

    def test_log_probabilities_are_reported_for_each_token_with_the_likeliest_others(self, backend: Backend) -> None:
        with _skipping_what_is_missing():
            result = _generate(backend, logprobs=3)
        assert result.logprobs is not None
        assert tuple(entry.token_id for entry in result.logprobs) == result.token_ids
        for entry in result.logprobs:
            values = [logprob for _, logprob in entry.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert max(entry.logprob, *values) <= 0.0
        assert _generate(backend).logprobs is None

    def test_log_probabilities_of_an_output_are_the_scores_of_its_tokens(self, backend: Backend) -> None:
        request = _request(backend, logprobs=0)
        with _skipping_what_is_missing():
            result = backend.submit(request).result(_WAIT_S)
        assert result.logprobs, "the model says nothing to this prompt"
        _assert_scored(backend, request.input_ids, result.logprobs)

    def test_log_probabilities_of_a_prompt_are_the_scores_of_its_tokens(self, backend: Backend) -> None:
        request = _request(backend, prompt_logprobs=True)
        with _skipping_what_is_missing():
            reported = backend.submit(request).result(_WAIT_S).prompt_logprobs
        assert reported is not None
        assert (len(reported), reported[0]) == (len(request.input_ids), None)
        _assert_scored(backend, request.input_ids[:1], [entry for entry in reported[1:] if entry is not None])

    def test_several_completions_come_as_a_list_over_a_prompt_that_is_computed_once(self, backend: Backend) -> None:
        request = _request(backend, n=3, temperature=1.0, seed=7)
        with _skipping_what_is_missing():
            handle = backend.submit(request)
        deltas = list(handle)
        results = handle.result(0)
        assert isinstance(results, list)
        texts = ["".join(delta.text for delta in deltas if delta.index == index) for index in range(3)]
        assert [result.text for result in results] == texts
        assert {result.usage.prompt_tokens for result in results} == {len(request.input_ids)}
        assert [result.usage.cached_tokens for result in results[1:]] == [len(request.input_ids)] * 2
        assert results[0].usage.cached_tokens < len(request.input_ids)

    def test_several_completions_have_seeds_of_their_own_and_can_be_repeated(self, backend: Backend) -> None:
        with _skipping_what_is_missing():
            first, second = (_generate(backend, n=4, temperature=1.0, seed=7) for _ in range(2))
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert [(result.seed, result.token_ids) for result in first] == [(r.seed, r.token_ids) for r in second]
        assert len({result.seed for result in first}) == 4

    def test_deltas_concatenate_to_the_result(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend))
        deltas = list(handle)
        assert "".join(delta.text for delta in deltas) == handle.result(0).text

    def test_late_listeners_get_every_delta_from_the_first(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend))
        text = handle.result(_WAIT_S).text
        heard: list[GenDelta] = []
        handle.add_delta_callback(heard.append)
        assert "".join(delta.text for delta in heard) == text

    def test_done_callbacks_run_once_before_and_after_the_end(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend))
        called = threading.Semaphore(0)
        handle.add_done_callback(lambda: called.release())
        handle.result(_WAIT_S)
        assert called.acquire(timeout=_WAIT_S)
        handle.add_done_callback(lambda: called.release())
        assert called.acquire(timeout=0)
        assert not called.acquire(timeout=0)

    def test_it_can_be_awaited_and_iterated_on_a_loop(self, backend: Backend) -> None:
        async def both() -> tuple[str, str]:
            first, second = backend.submit(_request(backend)), backend.submit(_request(backend))
            text = "".join([delta.text async for delta in second])
            return (await _awaited(first)).text, text

        awaited, iterated = asyncio.run(asyncio.wait_for(both(), _WAIT_S))
        assert awaited == iterated

    def test_aborting_a_finished_request_changes_nothing(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend))
        result = handle.result(_WAIT_S)
        handle.abort()
        assert handle.result(0) is result

    def test_an_aborted_request_ends(self, backend: Backend) -> None:
        handle = backend.submit(_request(backend, max_new_tokens=64, ignore_eos=True))
        handle.abort()
        assert isinstance(handle.result(_WAIT_S).finish_reason, FinishReason)
        assert _generate(backend).finish_reason is not FinishReason.ABORT

    def test_an_empty_prompt_is_refused_at_submit(self, backend: Backend) -> None:
        with _raises(InvalidArgumentError):
            backend.submit(GenRequest((), SamplingParams(max_new_tokens=1)))

    def test_unknown_ids_are_refused_at_submit(self, backend: Backend) -> None:
        for token in (-1, _NO_SUCH_ID):
            with _raises(InvalidArgumentError):
                backend.submit(GenRequest((token,), SamplingParams(max_new_tokens=1)))

    def test_an_explicit_budget_beyond_the_context_is_refused_at_submit(self, backend: Backend) -> None:
        with _raises(ContextLengthError):
            backend.submit(_request(backend, max_new_tokens=backend.capabilities.context_tokens))

    def test_scores_are_log_probabilities_one_per_token(self, backend: Backend) -> None:
        request = self._score_request(backend, ["sunny", "sunny day", "sunny"])
        result = backend.score(request).result(_WAIT_S)
        assert [len(row) for row in result.token_logprobs] == [len(ids) for ids in request.continuations]
        assert all(value <= 0.0 for row in result.token_logprobs for value in row)
        assert result.token_logprobs[0] == result.token_logprobs[2]
        assert result.usage.completion_tokens == 0

    def test_a_continuation_scores_the_same_alone_and_in_company(self, backend: Backend) -> None:
        together = backend.score(self._score_request(backend, ["sunny", "cold", "sunset"])).result(_WAIT_S)
        alone = backend.score(self._score_request(backend, ["cold"])).result(_WAIT_S)
        pairs = zip(together.token_logprobs[1], alone.token_logprobs[0], strict=True)
        assert all(abs(a - b) < 0.05 for a, b in pairs)  # low precision reorders sums

    def test_an_empty_continuation_is_refused_at_submit(self, backend: Backend) -> None:
        with _raises(InvalidArgumentError):
            backend.score(ScoreRequest(_request(backend).input_ids, ((),)))

    def test_prefetch_counts_its_prefix(self, backend: Backend) -> None:
        ids = _request(backend).input_ids
        assert backend.prefetch(PrefetchRequest(ids)).result(_WAIT_S).usage.prompt_tokens == len(ids)

    def test_fresh_seeds_are_valid_and_differ(self, backend: Backend) -> None:
        seeds = {backend.new_seed() for _ in range(8)}
        assert len(seeds) == 8
        assert all(0 <= seed < 2**63 for seed in seeds)

    def test_threads_may_submit_at_once_and_get_their_own(self, backend: Backend) -> None:
        texts = [f"{number} is the number of" for number in range(8)]
        alone = [_generate(backend, text).usage.prompt_tokens for text in texts]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda text: _generate(backend, text).usage.prompt_tokens, texts))
        assert together == alone

    def test_closing_ends_everything_and_may_be_repeated(self, closable_backend: Backend) -> None:
        handle = closable_backend.submit(_request(closable_backend, max_new_tokens=64, ignore_eos=True))
        closable_backend.close()
        closable_backend.close()
        error: BaseException | None = None
        try:
            handle.result(_WAIT_S)
        except SglError as raised:
            error = raised
        assert error is None or isinstance(error, EngineShutdown)
        with _raises(EngineShutdown):
            closable_backend.submit(_request(closable_backend))

    def _score_request(self, backend: Backend, continuations: list[str]) -> ScoreRequest:
        codec = backend.codec
        assert codec is not None
        return ScoreRequest(_request(backend).input_ids, tuple(codec.encode(" " + text) for text in continuations))


def _pattern_of(text: str) -> str:
    """A pattern that matches it, in what all dialects have in common."""
    return "".join(char if char.isalnum() or not char.isascii() else rf"\x{ord(char):02x}" for char in text)


def _assert_scored(backend: Backend, prompt: tuple[int, ...], entries: Sequence[TokenLogprob]) -> None:
    tokens = tuple(entry.token_id for entry in entries)
    scores = backend.score(ScoreRequest(prompt, (tokens,))).result(_WAIT_S).token_logprobs[0]
    pairs = zip(scores, (entry.logprob for entry in entries), strict=True)
    assert all(abs(a - b) < 0.05 for a, b in pairs)  # low precision reorders sums


async def _awaited(handle: Handle[GenResult]) -> GenResult:
    return await handle


class CodecContract:
    """Subclass it and give it a fixture ``codec``.

    Attributes:
        has_template: whether turns can be opened.
    """

    has_template: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("", "Hello, world.", "two\nlines\n\n", " spaces  around ", "naïve café 42", "日本語 🙂")

    def test_encode_and_decode_are_inverse(self, codec: TextCodec) -> None:
        for text in self.texts:
            assert codec.decode(codec.encode(text)) == text

    def test_encode_is_the_same_each_time_and_in_each_thread(self, codec: TextCodec) -> None:
        expected = [codec.encode(text) for text in self.texts]
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(lambda: [codec.encode(text) for text in self.texts]) for _ in range(16)]
            assert all(future.result(_WAIT_S) == expected for future in futures)

    def test_it_has_a_fingerprint(self, codec: TextCodec) -> None:
        assert isinstance(codec.fingerprint, str)
        assert codec.fingerprint

    def test_it_says_whether_its_template_takes_tools(self, codec: TextCodec) -> None:
        assert isinstance(codec.knows_tools, bool)

    def test_plain_text_holds_no_special_spelling(self, codec: TextCodec) -> None:
        assert all(codec.special_spelling(text) is None for text in self.texts)

    def test_trusted_and_plain_agree_on_plain_text(self, codec: TextCodec) -> None:
        assert all(codec.encode_trusted(text) == codec.encode(text) for text in self.texts)

    def test_stable_ids_do_not_change_with_what_follows(self, codec: TextCodec) -> None:
        for text in self.texts:
            length = codec.stable_len(text)
            for more in self.texts:
                assert codec.encode(text + more)[:length] == codec.encode(text)[:length]

    def test_a_spelled_control_token_stays_text_unless_trusted(self, codec: TextCodec) -> None:
        for token in self._control_ids(codec):
            spelling = codec.spell(token)
            text = f"before {spelling} behind"
            assert token not in codec.encode(text)
            assert codec.decode(codec.encode(text)) == text
            assert codec.special_spelling(text) == spelling
            assert codec.encode_trusted(spelling) == (token,)

    def test_decode_leaves_control_tokens_out(self, codec: TextCodec) -> None:
        for token in self._control_ids(codec):
            assert codec.decode((token, *codec.encode("text"), token)) == "text"

    def test_turns_are_made_of_ids_and_text(self, codec: TextCodec) -> None:
        if not self.has_template:
            return
        opened = codec.open_turn("user", TurnState())
        assert opened
        turns = TurnState(("user",), is_open=True)
        later = codec.open_turn("assistant", TurnState(("user",)))
        assert all(isinstance(piece, int | str) for piece in (*opened, *codec.close_turn("user", turns), *later))

    def test_a_prompt_begins_once(self, codec: TextCodec) -> None:
        begin = codec.begin()
        if not begin or not self.has_template:
            return
        later = codec.open_turn("assistant", TurnState(("user",)))
        assert begin[0] not in later

    def _control_ids(self, codec: TextCodec) -> set[int]:
        turns = TurnState(("user",), is_open=True)
        pieces = (*codec.open_turn("user", TurnState()), *codec.close_turn("user", turns)) if self.has_template else ()
        return {piece for piece in pieces if isinstance(piece, int)} | set(codec.begin())

"""Replies that are known: found by prompt and text, forgotten in their turn."""

import gc
import threading

from sgl_core.chat.replies import Reply, ReplyMemory, memory_of, reply_key
from sgl_core.testing import FakeBackend


def test_a_reply_is_found_by_the_prompt_before_it_and_what_it_says():
    memory = ReplyMemory()
    memory.remember((1, 2), "key", Reply((3,), "c"))
    assert memory.find((1, 2), "key") == Reply((3,), "c")
    assert memory.find((1, 2), "other") is None
    assert memory.find((1, 2, 3), "key") is None


def test_the_latest_reply_to_a_prompt_that_says_the_same_is_kept():
    memory = ReplyMemory()
    memory.remember((1,), "key", Reply((3,), "c"))
    memory.remember((1,), "key", Reply((4, 5), "c"))
    assert memory.find((1,), "key").ids == (4, 5)


def test_the_replies_that_nobody_asked_for_the_longest_are_forgotten_first():
    memory = ReplyMemory(most_replies=2)
    memory.remember((1,), "a", Reply((1,), "a"))
    memory.remember((2,), "b", Reply((2,), "b"))
    memory.find((1,), "a")
    memory.remember((3,), "c", Reply((3,), "c"))
    assert [memory.find(ids, key) is not None for ids, key in (((1,), "a"), ((2,), "b"), ((3,), "c"))] == [True, False, True]


def test_the_tokens_of_all_replies_are_bounded_also_when_some_are_replaced():
    memory = ReplyMemory(most_tokens=10)
    for _ in range(5):
        memory.remember((1,), "a", Reply((0,) * 6, "a"))
    memory.remember((2,), "b", Reply((0,) * 4, "b"))
    assert memory.find((1,), "a") is not None
    memory.remember((3,), "c", Reply((0,) * 1, "c"))
    assert [memory.find(ids, key) is not None for ids, key in (((1,), "a"), ((2,), "b"), ((3,), "c"))] == [True, False, True]


def test_a_key_holds_text_and_calls_whatever_the_order_of_their_arguments():
    assert reply_key("x", [("f", {"a": 1, "b": [2]})]) == reply_key("x", [("f", {"b": [2], "a": 1})])
    keys = {
        reply_key("x"),
        reply_key("y"),
        reply_key("x", [("f", {})]),
        reply_key("x", [("g", {})]),
        reply_key("x", [("f", {"a": 1})]),
    }
    assert len(keys) == 5


def test_front_ends_on_one_engine_share_its_replies_which_go_with_it():
    with FakeBackend() as one, FakeBackend() as other:
        found = []
        threads = [threading.Thread(target=lambda: found.append(memory_of(one))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(set(map(id, found))) == 1
        assert memory_of(other) is not memory_of(one)
    memory_of(FakeBackend()).remember((1,), "a", Reply((1,), "a"))
    gc.collect()
    assert memory_of(FakeBackend()).find((1,), "a") is None


def test_an_engine_that_can_be_neither_hashed_nor_referred_to_weakly_has_a_memory_that_nobody_keeps():
    class Unhashable(FakeBackend):
        __hash__ = None

    class Slotted:
        __slots__ = ()

    with Unhashable() as one:
        assert memory_of(one) is memory_of(one)
    slotted = Slotted()
    memory_of(slotted).remember((1,), "a", Reply((1,), "a"))
    assert memory_of(slotted).find((1,), "a") is None

"""Ids: each is given out once, whoever asks."""

import multiprocessing
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgl_core.ids import new_id


def test_ids_are_unique_and_of_one_shape_in_many_threads():
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id(), range(2_000)))
    assert len(set(ids)) == 2_000
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def put_ids(queue):
    queue.put([new_id() for _ in range(300)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gives_out_ids_of_its_own():
    new_id()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=put_ids, args=(queue,))
    child.start()
    theirs = queue.get(timeout=60)
    child.join(60)
    assert set(theirs).isdisjoint(new_id() for _ in range(300))

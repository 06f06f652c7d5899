"""Event streams: the events of every run, in its order, are the same plain and compiled."""

import asyncio

import pytest


@pytest.fixture
def modes():
    """With a handler to tell, a chain is LangChain's own code in every mode."""
    return ("scope", "auto")


@pytest.fixture
def by_run(normal, case_):
    """Events as data, run by run: runs that go side by side mix their events in any order, and their chunks further on."""

    def arranged(events):
        runs = {}
        for event in events:
            told = (event["event"], event["name"], sorted(event["tags"]), len(event["parent_ids"]))
            runs.setdefault(event["run_id"], []).append((*told, normal(event["metadata"]), normal(event["data"])))
        in_order = (lambda told: sorted(told, key=repr)) if case_.interleaves else list
        return sorted(map(in_order, runs.values()), key=repr)

    return arranged


def test_events(both, by_run):
    async def run(side):
        return [event async for event in side.runnable.astream_events(side.inputs[0], version="v2")]

    both.agree(lambda side: by_run(asyncio.run(run(side))), is_data=True)

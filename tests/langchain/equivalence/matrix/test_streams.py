"""Chunks: a stream brings the same pieces plain and compiled."""

import asyncio

import pytest


async def collected(iterator):
    return [item async for item in iterator]


@pytest.fixture
def modes():
    """A stream is LangChain's own code in every mode."""
    return ("scope", "auto")


@pytest.fixture
def arranged(case_, per_key):
    return per_key if case_.interleaves else list


def test_stream(both, arranged):
    for number in range(len(both.plain.inputs)):
        both.agree(lambda side, n=number: arranged(list(side.runnable.stream(side.inputs[n]))))


def test_astream(both, arranged):
    for number in (0, -1):
        both.agree(lambda side, n=number: arranged(asyncio.run(collected(side.runnable.astream(side.inputs[n])))))


def test_transform(both, arranged):
    both.agree(lambda side: arranged(list(side.runnable.transform(iter([side.inputs[0]])))))


def test_atransform(both, arranged):
    async def run(side):
        async def given():
            yield side.inputs[0]

        return await collected(side.runnable.atransform(given()))

    both.agree(lambda side: arranged(asyncio.run(run(side))))

"""Callbacks: a tracer sees the same runs, with the same names, tags, inputs, outputs and errors, plain and compiled."""

import asyncio
import threading

import pytest
from langchain_core.tracers import BaseTracer

CONFIG = {"tags": ["asked"], "metadata": {"who": "a test"}, "run_name": "the root"}


class Recorder(BaseTracer):
    """Keeps the root runs, each with all runs below it."""

    def __init__(self):
        super().__init__(_schema_format="original+chat")
        self.roots = []
        self._adding = threading.Lock()

    def _persist_run(self, run):
        with self._adding:
            self.roots.append(run)


@pytest.fixture
def modes():
    """With a handler to tell, a chain is LangChain's own code in every mode."""
    return ("scope", "auto")


@pytest.fixture
def tree(normal):
    """A run and all below it as data. Siblings are ordered by what they are: those of a Parallel end in any order."""

    def described(run):
        return (
            run.name,
            run.run_type,
            sorted(run.tags or []),
            normal(run.extra.get("metadata") or {}),
            normal(run.inputs),
            normal(run.outputs),
            normal((run.error or "").partition("Traceback")[0]),
            [event["name"] for event in run.events],
            sorted(map(described, run.child_runs), key=repr),
        )

    return described


@pytest.fixture
def traced(tree):
    """Run something with a recorder among its callbacks; the trees of what it has seen."""

    def run(work):
        recorder = Recorder()
        try:
            work({**CONFIG, "callbacks": [recorder]})
        except Exception as error:
            return type(error).__name__, sorted(map(tree, recorder.roots), key=repr)
        return None, sorted(map(tree, recorder.roots), key=repr)

    return run


def test_batch(both, traced):
    def run(side):
        return traced(lambda config: side.runnable.batch(list(side.inputs), config, return_exceptions=True))

    both.agree(run, is_data=True)


def test_invoke_and_stream(both, traced):
    both.agree(lambda side: traced(lambda config: side.runnable.invoke(side.inputs[-1], config)), is_data=True)
    both.agree(lambda side: traced(lambda config: list(side.runnable.stream(side.inputs[0], config))), is_data=True)


def test_async(both, traced):
    async def ways(side, config):
        async for _ in side.runnable.astream(side.inputs[0], config):
            pass
        await side.runnable.abatch(list(side.inputs[1:]), config, return_exceptions=True)

    both.agree(lambda side: traced(lambda config: asyncio.run(ways(side, config))), is_data=True)

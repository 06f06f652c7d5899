"""A distribution with a kind of Runnable of its own, installed by pip: compiled chains run what its plugin says of it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "foreign_distributions", Path(__file__).parents[1] / "plugins" / "test_foreign_distributions.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
foreign = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(foreign)

PRELUDE = """
import json
from harbour_sgl.runnables import Convoy, Pilot, Wreck
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from sgl_core.plugins import get_host
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, compile_runnable

engine = FakeBackend(lambda ids, params: "land ho")
chat = ChatSgl(engine=engine)
asks = ChatPromptTemplate([("system", "You are at sea."), ("human", "{where}")]) | chat | StrOutputParser()
convoy = Convoy(asks, RunnableLambda(str.upper))
WHERE = {"where": "the north"}
told = []
"""


@pytest.fixture(scope="module")
def at_sea(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What code that calls ``told.append`` has told, run where the distribution is installed."""
    folder = tmp_path_factory.mktemp("harbour")
    source = folder / "source"
    foreign.shutil.copytree(foreign.DISTRIBUTIONS / "harbour", source)
    foreign.pip_install(source, folder / "site")

    def told(code: str) -> list[Any]:
        printed: list[Any] = json.loads(foreign.run(f"{PRELUDE}\n{code}\nprint(json.dumps(told))", str(folder / "site")))
        return printed

    return told


def test_a_kind_that_a_plugin_knows_runs_as_a_program_and_gives_what_it_gave(at_sea):
    code = """
for chain in (convoy, convoy | RunnableLambda(len)):
    compiled = compile_runnable(chain, mode="program")
    told.append([chain.invoke(WHERE), compiled.invoke(WHERE), compiled.batch([WHERE, WHERE])])
    told.append(compiled._program(None) is not None)
told.append(len(convoy.log))
"""
    first, is_program, second, is_program_again, num_arrived = at_sea(code)
    assert first == ["LAND HO", "LAND HO", ["LAND HO"] * 2]
    assert second == [7, 7, [7, 7]]
    assert is_program
    assert is_program_again
    assert num_arrived == 8


def test_what_is_inside_it_is_planned_and_listed(at_sea):
    code = """
compiled = compile_runnable(convoy)
told.append(len(compiled.plan.models))
told.append(list(compiled.plan.reasons))
told.append(str(compiled.program()))
"""
    num_models, reasons, listing = at_sea(code)
    assert num_models == 1
    assert reasons == []
    assert "You are at sea." in listing
    assert "arrived" in listing


def test_a_kind_that_no_plugin_knows_runs_as_it_is(at_sea):
    code = """
compiled = compile_runnable(Pilot() | RunnableLambda(str.upper))
told.append([compiled.invoke("x"), compiled._program(None) is None, list(compiled.plan.reasons)])
"""
    [[output, is_refused, reasons]] = at_sea(code)
    assert output == "X"
    assert is_refused
    assert any("Pilot" in reason for reason in reasons)


def test_a_wrong_answer_of_a_plugin_is_an_error_that_names_the_hook_and_the_kind(at_sea):
    code = """
try:
    compile_runnable(Wreck())
except Exception as error:
    told.append([type(error).__name__, str(error)])
"""
    [[kind, message]] = at_sea(code)
    assert kind == "PluginHookError"
    assert "sgl_lower" in message
    assert "Wreck" in message


def test_the_host_translates_a_chain_with_it_into_a_program(at_sea):
    code = """
program = get_host().translate(convoy, {"mode": "scope"})
told.append(program.run(input=WHERE).ret_value)
told.append(get_host().translate(object()) is None)
"""
    assert at_sea(code) == ["LAND HO", True]

"""Shrinking comes to an end whatever the failure is, and says which seed failed."""

from __future__ import annotations

import pytest

import sgl_core.testing.simulation.script as script_module
from sgl_core.testing.simulation import Simulation, shrink
from sgl_core.testing.simulation.script import Script, Submit
from sgl_core.testing.simulation.shrink import run_seed


def test_a_livelock_is_shrunk_within_a_budget_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def step_on_the_spot(self: Simulation, **_: object) -> None:
        nonlocal taken
        taken += 1

    monkeypatch.setattr(Simulation, "step", step_on_the_spot)
    with pytest.raises(AssertionError, match="seed 7, 60 steps: AssertionError: the queue does not drain") as caught:
        run_seed(7, 60)
    assert taken < 50_000 + shrink._MAX_STEPS + 2 * shrink._DRAIN_LIMIT
    short = eval(str(caught.value).partition("fails so too:\n")[2], vars(script_module).copy())
    assert isinstance(short, Script)
    assert [type(operation) for operation in short.operations] == [Submit]


def test_a_run_that_is_given_up_says_its_seed_and_its_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(self: Simulation, **_: object) -> None:
        pytest.fail("the test hung")

    monkeypatch.setattr(Simulation, "step", hang)
    with pytest.raises(pytest.fail.Exception):
        run_seed(7, 60)
    said = capsys.readouterr().err
    assert said.startswith("seed 7, 60 steps: given up")
    assert "Submit(" in said

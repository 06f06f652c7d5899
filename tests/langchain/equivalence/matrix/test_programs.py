"""Which chains run as programs: without this, the other tests of the folder could compare LangChain's code with itself."""

from sgl_langchain.programs import RunnableProgram


def test_a_chain_runs_as_a_program_unless_something_in_it_forbids_that(both, case_):
    refusals = {mode: RunnableProgram(side.runnable.plan).refusal() for mode, side in both.compiled.items()}
    assert {mode: refusal is None for mode, refusal in refusals.items()} == dict.fromkeys(refusals, case_.is_closed), refusals


def test_a_handler_makes_it_langchains_own_code_again(both):
    program = RunnableProgram(both.compiled["auto"].runnable.plan)
    assert program.refusal({"callbacks": [object()]}) is not None

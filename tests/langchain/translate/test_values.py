"""Value numbers: what is the same in every run has the same number."""

from operator import itemgetter

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_langchain.translate.lower import lower
from sgl_langchain.translate.steps import Text, Value, common_pieces, pieces_behind
from sgl_langchain.translate.tracing import trace
from sgl_langchain.translate.values import INPUT, ValueTable


def values_of(runnable):
    return [[p.number for p in gen.prompt if isinstance(p, Value)] for gen in trace(lower(runnable)).gens()]


def test_a_key_is_looked_up_where_the_dict_is_known():
    table = ValueTable()
    essay = table.get("essay", INPUT)
    record = table.record({"clarity": table.fresh("answer")}, base=INPUT)
    assert table.get("essay", record) == essay
    assert table.get("clarity", record) != essay


def test_equal_pure_values_have_one_number_and_fresh_ones_never_do():
    table = ValueTable()
    assert table.pure("f", INPUT) == table.pure("f", INPUT)
    assert table.pure("f", INPUT) != table.pure("g", INPUT)
    assert table.fresh("x") != table.fresh("x")


def test_an_essay_that_three_prompts_read_has_one_number(chains):
    clarity, evidence, style, verdict = values_of(chains.judges)
    assert clarity == evidence == style == verdict[:1]
    assert len(set(verdict)) == 4


def test_an_itemgetter_a_pick_and_a_template_find_the_same_value(ask):
    prompt = ask(("human", "{x}"))
    chain = RunnableParallel(
        a={"x": itemgetter("x")} | prompt, b=RunnablePassthrough().pick(["x"]) | prompt, c=RunnablePassthrough() | prompt
    )
    (a,), (b,), (c,) = values_of(chain)
    assert a == b == c


def test_two_calls_of_one_retriever_have_two_numbers(ask):
    found = {"docs": RunnableLambda(len), "x": itemgetter("x")} | ask(("human", "{docs} {x}"))
    (a, x), (b, same) = values_of(RunnableParallel(a=found, b=found))
    assert a != b
    assert x == same


def test_two_answers_to_one_prompt_are_two_values(chat):
    answer = ChatPromptTemplate([("human", "{x}")]) | chat | StrOutputParser()
    root = trace(lower(RunnableParallel(a=answer, b=answer)))
    record = root.values[root.value]
    assert len(set(record.operands)) == 2


def test_common_text_is_cut_behind_a_word():
    assert common_pieces((Text("Judge the clarity."),), (Text("Judge the clown."),)) == (Text("Judge the "),)
    assert common_pieces((Text("Judge"),), (Text("Judge it"),)) == (Text("Judge"),)
    assert common_pieces((Text("cat"),), (Text("cats"),)) == ()


def test_a_value_counts_as_common_whatever_a_template_calls_it():
    assert len(common_pieces((Value(3, "essay"),), (Value(3, "text"),))) == 1
    assert common_pieces((Value(3, format=":>4"),), (Value(3),)) == ()


def test_what_is_behind_a_cut_text_begins_inside_it():
    prompt = (Text("Judge the essay."), Value(1))
    assert pieces_behind((Text("Judge "),), prompt) == (Text("the essay."), Value(1))
    assert pieces_behind(prompt, prompt) == ()

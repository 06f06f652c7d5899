"""Chains as native programs, text for text."""

from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RouterRunnable, RunnableBranch, RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_langchain.translate.listing import listing
from sgl_langchain.translate.plan import Plan


def body(runnable):
    head, name, *lines = listing(Plan.of(runnable)).splitlines()
    assert (head, name) == ("@sgl.function", "def program(s, input):")
    return [line.removeprefix("    ") for line in lines]


def test_a_few_shot_chain_is_one_prompt_and_one_answer(chains):
    assert body(chains.few_shot) == [
        (
            's += sgl.system("You label reviews.") + sgl.user("Review: It broke.") + sgl.assistant("bad")'
            ' + sgl.user("Review: I like it.") + sgl.assistant("good") + sgl.user("Review: " + input["text"])'
            ' + sgl.assistant(sgl.gen("out", temperature=0))'
        ),
        'return s["out"]',
    ]


def test_judges_fork_behind_the_essay_and_the_verdict_goes_on_from_there(chains):
    assert body(chains.judges) == [
        's += sgl.system("You judge essays.") + sgl.user_begin() + "Essay:\\n" + input["essay"] + "\\n\\n"',
        "fs = s.fork(3)",
        'fs[0] += "Judge the essay on clarity." + sgl.user_end() + sgl.assistant(sgl.gen("clarity", temperature=0))',
        'fs[1] += "Judge the essay on evidence." + sgl.user_end() + sgl.assistant(sgl.gen("evidence", temperature=0))',
        'fs[2] += "Judge the essay on style." + sgl.user_end() + sgl.assistant(sgl.gen("style", temperature=0))',
        (
            's += "Clarity: " + fs[0]["clarity"] + "\\nEvidence: " + fs[1]["evidence"] + "\\nStyle: " + fs[2]["style"]'
            ' + "\\nYour verdict?" + sgl.user_end() + sgl.assistant(sgl.gen("verdict", temperature=0))'
        ),
        (
            'return {**input, "clarity": fs[0]["clarity"], "evidence": fs[1]["evidence"], "style": fs[2]["style"],'
            ' "verdict": s["verdict"]}'
        ),
    ]


def test_a_retriever_is_called_before_the_prompt(chains):
    assert body(chains.rag) == [
        "x1 = call(retriever)(input)",
        "x2 = call(format_docs)(x1)",
        (
            's += sgl.user("Answer from the context.\\n\\nContext:\\n" + x2 + "\\n\\nQuestion: " + input)'
            ' + sgl.assistant(sgl.gen("out", temperature=0))'
        ),
        'return s["out"]',
    ]


def test_a_map_is_a_fork_for_each_element(chains):
    assert body(chains.map_reduce) == [
        's += sgl.system("You are brief.")',
        "x1 = call(split)(input)",
        "fs = s.fork(len(x1))",
        "for f, x2 in zip(fs, x1):",
        '    f += sgl.user("Summarise:\\n" + x2) + sgl.assistant(sgl.gen("out", temperature=0))',
        'x3 = [f["out"] for f in fs]',
        "x4 = call(to_notes)(x3)",
        's += sgl.user("Merge the notes:\\n" + x4) + sgl.assistant(sgl.gen("summary", temperature=0))',
        'return {"partials": x3, "summary": s["summary"]}',
    ]


def test_options_of_a_binding_are_those_of_the_generation(chains):
    assert body(chains.consistency) == [
        's += sgl.user("Solve: " + input["problem"]) + sgl.assistant(sgl.gen("out", temperature=0.8))',
        'x1 = call(last_number)(s["out"])',
        "return x1",
    ]


def test_arms_of_a_branch_go_on_from_what_all_prompts_share(chains):
    assert body(chains.router) == [
        's += sgl.system("You answer letters.")',
        "t = s.copy()",
        (
            't += sgl.user("What is it about?\\n" + input["text"])'
            ' + sgl.assistant(sgl.gen("label", temperature=0, choices=["billing", "other"]))'
        ),
        'if call(is_billing)({**input, "label": t["label"]}):',
        '    s += sgl.user("Refund:\\n" + input["text"]) + sgl.assistant(sgl.gen("out", temperature=0))',
        '    x1 = s["out"]',
        "else:",
        '    s += sgl.user("Thank:\\n" + input["text"]) + sgl.assistant(sgl.gen("out_2", temperature=0))',
        '    x1 = s["out_2"]',
        "return x1",
    ]


def test_a_router_compares_its_key(ask):
    assert body(RouterRunnable({"a": ask(("human", "A {x}")), "b": RunnableLambda(len)})) == [
        'if input["key"] == "a":',
        '    s += sgl.user("A " + input["input"]) + sgl.assistant(sgl.gen("out", temperature=0))',
        '    x1 = s["out"]',
        'elif input["key"] == "b":',
        '    x2 = call(len)(input["input"])',
        "    x1 = x2",
        "return x1",
    ]


def test_a_condition_that_asks_the_model_stands_behind_the_else_of_the_first(ask):
    tested = ask(("human", "Is it {x}?")) | RunnableLambda(bool)
    branch = RunnableBranch((bool, RunnableLambda(str)), (tested, RunnableLambda(len)), RunnableLambda(repr))
    assert body(branch) == [
        "if call(bool)(input):",
        "    x2 = call(str)(input)",
        "    x1 = x2",
        "else:",
        "    t = s.copy()",
        '    t += sgl.user("Is it " + input["x"] + "?") + sgl.assistant(sgl.gen("out", temperature=0))',
        '    if call(bool)(t["out"]):',
        "        x3 = call(len)(input)",
        "        x1 = x3",
        "    else:",
        "        x4 = call(repr)(input)",
        "        x1 = x4",
        "return x1",
    ]


def test_fallbacks_are_tried_on_streams_of_their_own(ask):
    assert body(ask(("human", "A {x}")).with_fallbacks([ask(("human", "B {x}"))])) == [
        "try:",
        "    t = s.copy()",
        '    t += sgl.user("A " + input["x"]) + sgl.assistant(sgl.gen("out", temperature=0))',
        '    x1 = t["out"]',
        "except handled:",
        '    s += sgl.user("B " + input["x"]) + sgl.assistant(sgl.gen("out_2", temperature=0))',
        '    x1 = s["out_2"]',
        "return x1",
    ]


def test_a_retry_says_how_often(ask):
    assert body(ask(("human", "A {x}")).with_retry(stop_after_attempt=2)) == [
        "for attempt in range(2):  # until one does not fail",
        "    t = s.copy()",
        '    t += sgl.user("A " + input["x"]) + sgl.assistant(sgl.gen("out", temperature=0))',
        '    x1 = t["out"]',
        "    break",
        "return x1",
    ]


def test_what_several_arms_share_is_written_on_a_stream_for_them_alone(ask):
    arms = {name: ask(("system", "You are a careful reader of long essays."), ("human", name + " {x}")) for name in "ab"}
    chain = RunnablePassthrough.assign(**arms) | ask(("human", "{a} or {b}?"))
    assert body(chain)[:4] == [
        "t = s.copy()",
        't += sgl.system("You are a careful reader of long essays.")',
        "fs = t.fork(2)",
        'fs[0] += sgl.user("a " + input["x"]) + sgl.assistant(sgl.gen("a", temperature=0))',
    ]


def test_a_branch_without_a_model_takes_no_part_in_the_fork(ask):
    assert body(RunnableParallel(a=ask(("human", "{x}")), b=RunnableLambda(len))) == [
        's += sgl.user(input["x"]) + sgl.assistant(sgl.gen("a", temperature=0))',
        "x1 = call(len)(input)",
        'return {"a": s["a"], "b": x1}',
    ]


def test_a_map_whose_elements_end_in_host_code_collects_them(ask):
    chain = RunnableLambda(list) | (ask(("human", "{x}")) | RunnableLambda(len)).map()
    assert body(chain) == [
        "x1 = call(list)(input)",
        "fs = s.fork(len(x1))",
        "x4 = []",
        "for f, x2 in zip(fs, x1):",
        '    f += sgl.user(x2) + sgl.assistant(sgl.gen("out", temperature=0))',
        '    x3 = call(len)(f["out"])',
        "    x4.append(x3)",
        "return x4",
    ]


def test_a_map_without_a_model_is_a_loop():
    assert body(RunnableLambda(list) | RunnableLambda(len).map()) == [
        "x1 = call(list)(input)",
        "x2 = []",
        "for x3 in x1:",
        "    x4 = call(len)(x3)",
        "    x2.append(x4)",
        "return x2",
    ]


def test_messages_of_a_placeholder_are_named_as_such(chat):
    chain = ChatPromptTemplate([("system", "S"), MessagesPlaceholder("history"), ("human", "{x:>4}")]) | chat
    assert body(chain)[0] == (
        's += sgl.system("S") + messages(input["history"]) + sgl.user(f"{input["x"]:>4}")'
        ' + sgl.assistant(sgl.gen("out", temperature=0))'
    )


def test_a_text_model_has_no_turns(llm):
    chain = PromptTemplate.from_template("Q: {q}\nA:") | llm.bind(stop=["\n"], max_tokens=8)
    assert body(chain) == [
        's += "Q: " + input["q"] + "\\nA:" + sgl.gen("out", temperature=0, max_tokens=8, stop=["\\n"])',
        'return s["out"]',
    ]


def test_a_text_model_reads_messages_as_langchain_writes_them(llm):
    chain = ChatPromptTemplate([("system", "S"), ("human", "{q}")]) | llm
    assert body(chain)[0] == 's += "System: S\\nHuman: " + input["q"] + sgl.gen("out", temperature=0)'


def test_a_long_text_is_shown_by_its_ends(ask):
    text = "Once upon a time " + "there was " * 40 + "a king."
    (line, _) = body(ask(("human", text + "{x}")))
    assert line.startswith('s += sgl.user("Once upon a time there was there was there was t ... was a king." + input["x"])')


def test_a_parser_that_is_no_plain_text_is_a_call(chat):
    assert body(chat | JsonOutputParser())[1:] == ['x1 = call(JsonOutputParser)(s["out"])', "return x1"]


def test_a_function_that_only_watches_is_called_for_its_effect(chat):
    def watch(value):
        del value

    assert body(RunnablePassthrough(watch) | chat | StrOutputParser())[0] == "call(watch)(input)"


def test_a_prompt_without_a_model_is_a_call():
    assert body(ChatPromptTemplate([("human", "{x}")])) == ["return call(ChatPromptTemplate)(input)"]

"""Sort a batch of reviews with one few-shot prompt: its examples are computed once, whatever the size of the batch.

    python examples/langchain_few_shot_batch.py

``choices`` makes the model answer with one of the labels. ``explain`` says beforehand what the prompts of a chain share.
"""

from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate

from sgl_langchain import ChatSgl, compile_runnable

LABELS = ["keep it", "send it back"]
SHOTS = [
    {"review": "The battery lasts for days and it charges quickly.", "label": "keep it"},
    {"review": "It broke after a week and nobody answered my letters.", "label": "send it back"},
    {"review": "Light, quiet, and easy to clean.", "label": "keep it"},
    {"review": "The lid leaks and the handle gets too hot to hold.", "label": "send it back"},
    {"review": "My whole family uses it every morning.", "label": "keep it"},
    {"review": "The colour came off in the first wash.", "label": "send it back"},
]
REVIEWS = (
    "I would buy it again without thinking twice.",
    "The instructions are wrong and two screws were missing.",
    "It does what it promises and looks good.",
    "After a month the screen went dark.",
    "The smell never went away.",
    "Delivery was fast and everything fits.",
    "The sound is clear even in a noisy room.",
    "I sent it back on the same day.",
)
ONE_SHOT = ChatPromptTemplate([("human", "{review}"), ("ai", "{label}")])
PROMPT = ChatPromptTemplate(
    [
        ("system", "You say what the customer will do."),
        FewShotChatMessagePromptTemplate(examples=SHOTS, example_prompt=ONE_SHOT),
        ("human", "{review}"),
    ]
)


def main() -> None:
    chat = ChatSgl(max_tokens=8)
    chain = compile_runnable(PROMPT | chat.bind(choices=LABELS))
    print(chain.explain())

    answers = chain.batch([{"review": review} for review in REVIEWS])
    for review, answer in zip(REVIEWS, answers, strict=True):
        if used := answer.usage_metadata:
            cached = used["input_token_details"]["cache_read"]
            print(f"{answer.text:<12} {cached:>4} of {used['input_tokens']} prompt tokens cached  {review}")


if __name__ == "__main__":
    main()

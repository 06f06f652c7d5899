"""A DSPy program on a model in this process: four attempts at a question from one prefill, and what the cache saved.

Run it with ``python examples/dspy_program.py``; it needs ``pip install 'sgl-core[dspy]'``.
"""

from __future__ import annotations

import dspy

from sgl_dspy import SglLM

QUESTIONS = ("Why is the sky blue?", "Why is the sea salty?")


def main() -> None:
    """Ask two questions with one signature, then sample four answers to the last one."""
    lm = SglLM(max_tokens=48, cache=False)
    explain = dspy.Predict(dspy.Signature("question -> answer", "Answer in one short sentence."))
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        for question in QUESTIONS:
            try:
                answer = explain(question=question).answer
            except dspy.AdapterParseError:  # a model this small does not always keep to the format
                answer = lm.history[-1]["outputs"][0]
            report(lm, question, answer)
        drafts = lm(QUESTIONS[-1], n=4, temperature=0.8, seed=7)
    report(lm, f"{QUESTIONS[-1]} (four drafts)", " | ".join(draft[:40].replace("\n", " ") for draft in drafts))
    lm.close()


def report(lm: SglLM, question: str, answer: str) -> None:
    """Print an answer and the token counts of the last call."""
    usage = lm.history[-1]["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    print(f"{question}\n  {answer.strip()}\n  {usage['prompt_tokens']} prompt tokens, {cached} of them from the cache")


if __name__ == "__main__":
    main()

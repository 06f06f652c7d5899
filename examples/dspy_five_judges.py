"""Five judges read one essay, and a sixth predictor sums up what they said: hoisted, the essay is computed once for all six.

    python examples/dspy_five_judges.py

DSPy begins every prompt with the task, and the tasks of judges differ, so the essay behind them is computed for each one.
``compile_module(judges, hoist=["essay"])`` makes a module of the same class that begins with the essay. The text of the prompts
is another one then, so scores may differ; that is why it is asked for and not done by itself.
"""

from pathlib import Path

import dspy

from sgl_dspy import ChatAdapter, SglLM, compile_module

ESSAY = "\n\n".join((Path(__file__).parent / "essay.txt").read_text(encoding="utf-8").split("\n\n")[:3])
DIMENSIONS = ("clarity", "evidence", "style", "structure", "originality")


class Judges(dspy.Module):
    """One predictor for each dimension, and one for the verdict."""

    def __init__(self) -> None:
        super().__init__()
        for dimension in DIMENSIONS:
            task = dspy.Signature(
                "essay: str -> comment: str, score: int", f"Judge the {dimension} of the essay, from 1 to 10."
            )
            setattr(self, dimension, dspy.Predict(task))
        self.verdict = dspy.Predict(
            dspy.Signature("essay: str, comments: list[str] -> verdict: str", "Sum up what the judges said in one sentence.")
        )

    def forward(self, essay: str) -> dspy.Prediction:
        """Let all judges read it at the same time."""
        together = dspy.Parallel(num_threads=len(DIMENSIONS), timeout=0, disable_progress_bar=True)
        judged = together([(getattr(self, dimension), {"essay": essay}) for dimension in DIMENSIONS])
        verdict = self.verdict(essay=essay, comments=[judgement.comment for judgement in judged]).verdict
        return dspy.Prediction(scores=[judgement.score for judgement in judged], verdict=verdict)


def main() -> None:
    lm = SglLM(max_tokens=48, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    judges = Judges()
    for name, program in (("as it is", judges), ("hoisted", compile_module(judges, hoist=["essay"]))):
        result = program(essay=ESSAY)
        prompt = sum(entry["usage"]["prompt_tokens"] for entry in lm.history)
        cached = sum(entry["usage"]["prompt_tokens_details"]["cached_tokens"] for entry in lm.history)
        lm.history.clear()
        print(f"{name}: {cached:,} of {prompt:,} prompt tokens cached")
        print("  " + ", ".join(f"{dimension} {score}" for dimension, score in zip(DIMENSIONS, result.scores, strict=True)))
        print(f"  {result.verdict}")


if __name__ == "__main__":
    main()

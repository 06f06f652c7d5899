"""Five judges read one essay, and a sixth predictor decides about it: hoisted, the essay is computed once for all six.

    python examples/dspy_five_judges.py

DSPy begins every prompt with the task, and the tasks of judges differ, so the essay behind them is computed for each one.
``compile_module(judges, hoist=["essay"])`` makes a module of the same class that begins with the essay. The text of the prompts
is another one then, so grades may differ; that is why it is asked for and not done by itself.
"""

from pathlib import Path

import dspy

from sgl_dspy import ChatAdapter, SglLM, compile_module

ESSAY = "\n\n".join((Path(__file__).parent / "essay.txt").read_text(encoding="utf-8").split("\n\n")[:3])
DIMENSIONS = ("clarity", "evidence", "style", "structure", "originality")
GRADED = "essay -> grade: Literal['excellent', 'good', 'fair', 'poor']"
DECIDED = "essay, grades: list[str] -> verdict: Literal['print it', 'send it back']"


class Judges(dspy.Module):
    """One predictor for each dimension, and one for the verdict."""

    def __init__(self) -> None:
        super().__init__()
        for dimension in DIMENSIONS:
            setattr(self, dimension, dspy.Predict(dspy.Signature(GRADED, f"Judge the {dimension} of the essay.")))
        self.verdict = dspy.Predict(dspy.Signature(DECIDED, "Decide what becomes of the essay."))

    def forward(self, essay: str) -> dspy.Prediction:
        """Let all judges read it at the same time."""
        together = dspy.Parallel(num_threads=len(DIMENSIONS), timeout=0, disable_progress_bar=True)
        judged = together([(getattr(self, dimension), {"essay": essay}) for dimension in DIMENSIONS])
        grades = [judgement.grade for judgement in judged]
        return dspy.Prediction(grades=grades, verdict=self.verdict(essay=essay, grades=grades).verdict)


def main() -> None:
    lm = SglLM(max_tokens=40, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    judges = Judges()
    for name, program in (("as it is", judges), ("hoisted", compile_module(judges, hoist=["essay"]))):
        result = program(essay=ESSAY)
        prompt = sum(entry["usage"]["prompt_tokens"] for entry in lm.history)
        cached = sum(entry["usage"]["prompt_tokens_details"]["cached_tokens"] for entry in lm.history)
        lm.history.clear()
        print(f"{name}: {cached:,} of {prompt:,} prompt tokens cached")
        print("  " + ", ".join(f"{dimension} {grade}" for dimension, grade in zip(DIMENSIONS, result.grades, strict=True)))
        print(f"  verdict: {result.verdict}")


if __name__ == "__main__":
    main()

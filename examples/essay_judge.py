"""Judge an essay on several dimensions in parallel, sum the judgements up, and grade it.

    python examples/essay_judge.py          with and without the prefix cache, and what the cache saved
    sgl run examples/essay_judge.py         once; --arg essay="..." and --arg 'dimensions=[...]' judge something else

The essay stands in the prompt of every call, so an engine without a prefix cache computes it once for each of them.
"""

import sys
import time
from pathlib import Path

import sgl_native as sgl
from sgl_native.records import RunRecord
from sgl_native.report import print_comparison

ESSAY = Path(__file__).with_name("essay.txt").read_text(encoding="utf-8")
DIMENSIONS = ("clarity", "evidence", "style")
HIGHEST_RATIO = 0.45  # of the prompt tokens computed with the cache to those computed without


@sgl.function
def essay_judge(s, essay=ESSAY, dimensions=DIMENSIONS):
    s += sgl.system("You judge essays.") + sgl.user("Essay:\n" + essay)
    forks = s.fork(len(dimensions))
    for f, dimension in zip(forks, dimensions, strict=True):
        f += sgl.user(f"Judge the essay on {dimension}, in one or two sentences.")
        f += sgl.assistant(sgl.gen("judgement", max_tokens=48, temperature=0))
    forks.join()
    s += sgl.user("Summary of the judgements:\n" + sgl.call("\n".join, s["judgement"]))
    s += sgl.assistant(sgl.gen("summary", max_tokens=64, temperature=0))
    s += sgl.user("Grade it.") + sgl.assistant("Grade: " + sgl.select("grade", ["A", "B", "C", "D"]))


def timed_run(*, prefix_cache: bool) -> RunRecord:
    # float32: in bfloat16 a prefix computed in other batches rounds otherwise, which can tip a near tie between two tokens.
    with sgl.Engine(dtype="float32", prefix_cache=prefix_cache) as engine:
        started = time.perf_counter()
        state = essay_judge.run(backend=engine)
        return RunRecord.of(state, engine, time.perf_counter() - started)


def main() -> int:
    print("Judging the essay with the prefix cache ...", file=sys.stderr)
    cached = timed_run(prefix_cache=True)
    print("Judging it again without ...", file=sys.stderr)
    uncached = timed_run(prefix_cache=False)
    print_comparison(cached, uncached)
    saved = cached.totals().prefilled_tokens <= HIGHEST_RATIO * uncached.totals().prefilled_tokens
    return 0 if saved and cached.same_result(uncached) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The first workload of ``bench_engine.py`` alone: one prefix, many questions.

python benchmarks/bench_few_shot.py [the options of bench_engine.py]
"""

from __future__ import annotations

import sys

from bench_engine import main

if __name__ == "__main__":
    sys.exit(main(["--workloads", "W1", *sys.argv[1:]]))

"""The scheduler under simulation: a model that cannot be fooled, a driver, and random scripts that shrink.

``oracle`` stands for the model, ``driver`` for the engine's thread, ``script`` for what users do. One seed is one run.
"""

from sgl_core.testing.simulation.driver import VOCAB, Simulation, TextSink, expected_scores, tokens
from sgl_core.testing.simulation.oracle import Forcing, OracleRunner, oracle_continuation, oracle_score

__all__ = [
    "VOCAB",
    "Forcing",
    "OracleRunner",
    "Simulation",
    "TextSink",
    "expected_scores",
    "oracle_continuation",
    "oracle_score",
    "tokens",
]

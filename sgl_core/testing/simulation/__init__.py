"""The scheduler under simulation: a model that cannot be fooled, a driver, and random scripts that shrink.

``oracle`` stands for the model, ``driver`` for the engine's thread, ``script`` for what users do. One seed is one run.
"""

from sgl_core.testing.simulation.driver import VOCAB, Simulation, TextSink, tokens
from sgl_core.testing.simulation.oracle import OracleRunner, oracle_continuation

__all__ = ["VOCAB", "OracleRunner", "Simulation", "TextSink", "oracle_continuation", "tokens"]

"""Random programs of the language, for comparing one way of running them with another.

``generate`` makes a program from a seed, ``observe`` runs it by any door and says what is to be seen, ``difference`` compares.
``fault`` does that for a program interpreted and compiled; ``explained`` shows a fault in the smallest program that has it.
Used by the tests of the compiler.
"""

from sgl_core.testing.programs.comparing import compiled, explained, fault
from sgl_core.testing.programs.generator import FEATURES, generate
from sgl_core.testing.programs.observing import Mode, Observation, ProgramBackend, difference, observe, observed_runs
from sgl_core.testing.programs.shrinking import report, shrunk
from sgl_core.testing.programs.tree import Kind, Program, World, function_of, source

__all__ = [
    "FEATURES",
    "Kind",
    "Mode",
    "Observation",
    "Program",
    "ProgramBackend",
    "World",
    "compiled",
    "difference",
    "explained",
    "fault",
    "function_of",
    "generate",
    "observe",
    "observed_runs",
    "report",
    "shrunk",
    "source",
]

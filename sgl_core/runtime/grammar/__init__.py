"""What an output may look like: regular expressions, JSON schemas, Lark grammars, choices, stop patterns. No torch.

``Intake`` asks the ``GrammarCompiler`` on the caller's thread; what comes back makes one ``GrammarMatcher`` a request, which
sampler and scheduler know as ``sgl_core.runtime.constraint.Constraint``. The automata are llguidance's.
"""

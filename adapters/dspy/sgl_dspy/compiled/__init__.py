"""Modules as fork/join programs: ``compile_module``, what it records of a run, ``explain`` and ``run_batch``. The topmost room."""

"""Runnables as fork/join programs: lowering, what their prompts share, and how they run."""

"""Runnables as nodes and steps: lowering, what their prompts share, what a plan and its explanation say of them."""

"""Runnables of a harbour office, and a plugin that tells sgl-core what they are made of."""

"""Operators: tensors in, tensors out. Knows nothing of the rest of the project."""

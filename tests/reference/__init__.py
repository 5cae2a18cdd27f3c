"""Slow references of the vectorized functions, written from the formulas, one instance at a time."""

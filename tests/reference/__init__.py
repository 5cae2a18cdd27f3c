"""Slow references of the vectorised functions, written from the formulas, one instance at a time."""

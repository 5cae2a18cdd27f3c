"""Slow, obvious twins of the vectorised functions: written from the formulas, one instance at a time."""

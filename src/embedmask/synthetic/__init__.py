"""Synthetic data: images of overlapping textured shapes with exact masks."""

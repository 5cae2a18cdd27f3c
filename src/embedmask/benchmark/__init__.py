"""The command `embedmask bench`: time and memory of each stage from image files to masks, for EmbedMask and a baseline.

The baseline is torchvision's Mask R-CNN. This package is part of the library and measures one configuration on the
user's machine. The scripts that produce the figures of docs/ are in `benchmarks/` at the root of the repository; one of
them, `benchmarks/performance.py`, runs `compare` of this package with many configurations.
"""

"""The network: images in, `Predictions` out. Read `embedmask.py` first."""

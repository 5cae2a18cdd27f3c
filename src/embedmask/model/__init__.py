"""The network: pictures in, `Predictions` out. Read `embedmask.py` first."""

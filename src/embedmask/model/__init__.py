"""The network: images in, `Predictions` out. Start reading at `embedmask.py`."""

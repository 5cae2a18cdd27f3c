"""Inference: decoding of predictions (section 3.6), and prediction for images in any form."""

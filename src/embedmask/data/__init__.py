"""Images and ground truth, from a folder to batches."""

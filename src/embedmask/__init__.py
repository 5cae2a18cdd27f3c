"""EmbedMask: one-stage instance segmentation by coupling pixel and proposal embeddings."""

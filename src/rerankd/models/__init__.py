"""Model architectures: `PackedBatch -> float32 logits`, one for each document. See registry.py for the list."""

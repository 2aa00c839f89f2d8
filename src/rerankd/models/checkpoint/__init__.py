"""Reading checkpoints: the configuration, the tensors, the files that a folder or a hub must have."""

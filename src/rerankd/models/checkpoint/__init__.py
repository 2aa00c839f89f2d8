"""Reading checkpoints: the configuration, the tensors, and the files of a folder or a hub."""

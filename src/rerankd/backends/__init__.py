"""How a transformer runs: `base` is the protocol, `select` chooses, and each folder is a backend."""

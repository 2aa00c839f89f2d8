"""Tensor parallelism: one model in several processes, which the first leads; `follower.py` is of the others."""

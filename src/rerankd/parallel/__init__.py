"""Tensor parallelism: one model in several processes, a device each. The first leads, the others follow its batches."""

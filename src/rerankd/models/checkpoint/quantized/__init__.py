"""Checkpoints with weights in few bits: the layout of each format, and its dequantisation."""

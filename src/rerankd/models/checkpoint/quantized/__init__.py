"""Checkpoints with quantised weights: the layout of each format, and its dequantisation."""

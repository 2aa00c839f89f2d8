"""Checkpoints whose weights are stored in a few bits: how each format is laid out, and what numbers it stands for."""

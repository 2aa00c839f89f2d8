"""Comparisons with other engines on one machine. Run from the repository's root: `python -m benchmarks.compare`."""

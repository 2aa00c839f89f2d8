"""Command lines and environment variables of the programs that rerankd replaces."""

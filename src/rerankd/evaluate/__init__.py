"""`rerankd eval`: how good rankings are, and whether one is better than another."""

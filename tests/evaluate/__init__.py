"""`rerankd eval`, and other evaluators with rerankd in a model's place."""

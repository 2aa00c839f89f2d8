"""How each kind of model is scored, as data: prompt, answer tokens, default instruction, limits. See recipe.py."""

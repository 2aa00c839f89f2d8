"""From requests to token ids: templates, pair encoding, truncation, un-templating, escaping."""

from rerankd.prompts.load import LoadedPrompts, load_prompts

__all__ = ["LoadedPrompts", "load_prompts"]

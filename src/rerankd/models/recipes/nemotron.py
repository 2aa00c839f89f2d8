"""llama-nemotron-rerank-1b-v2 and llama-3.2-nv-rerankqa-1b-v2: a question and a passage in one text.

Source: `prompt_template` on the models' cards by nvidia, and vLLM's template. Their tokenizer puts `BEGIN` before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.recipes.recipe import Recipe

BEGIN = "<|begin_of_text|>"


@dataclass(frozen=True, slots=True)
class NemotronTemplate:
    """The spaces around the newlines are the authors'."""

    takes_instruction: bool = False
    verbatim: bool = True
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        return f"{BEGIN}question:{query} \n \n passage:{document}"


NEMOTRON_RERANK = Recipe("nemotron-rerank", family="cross-encoder", template=NemotronTemplate())
"""A classifier over a text that a template writes. No class of another purpose has its name."""

"""monoT5: one text that ends in "Relevant:", scored by how probable "true" is against "false" as the first token.

Source: Nogueira et al., 2020; `MonoT5` and `T5BatchTokenizer` in castorini's pygaggle, whose score is the logarithm of
that probability.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.recipes.recipe import Recipe

END = "</s>"


@dataclass(frozen=True, slots=True)
class MonoT5Template:
    """The tokenizer's own last token is part of the text."""

    takes_instruction: bool = False
    verbatim: bool = True
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        return f"Query: {query} Document: {document} Relevant:{END}"


MONOT5 = Recipe(
    "monot5",
    family="encoder-decoder",
    answers=("\u2581false", "\u2581true"),
    activation="identity",
    template=MonoT5Template(),
    models="monot5",
)

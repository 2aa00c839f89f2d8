"""monoT5: one text that ends in "Relevant:", scored by how probable "true" is against "false" as the first token.

Source: Nogueira et al., 2020; `MonoT5`, `T5BatchTokenizer` and the table of answers in castorini's pygaggle. The score
is the logarithm of that probability. unicamp-dl's models over mT5 (Bonifacio et al., 2021) have the same text and other
answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    refused=(
        (
            "duot5",
            "duoT5 reads two documents at a time and says which is the better one, so that no document has a score; "
            "serve a monoT5 model",
        ),
    ),
)
MT5_MMARCO = replace(
    MONOT5, name="mt5-mmarco", answers=("\u2581no", "\u2581yes"), models="mt5[-_]base[-_]((en|en[-_]pt)[-_]ms|m)marco"
)
MT5_MMARCO_LARGE = replace(
    MONOT5, name="mt5-mmarco-large", answers=("\u2581", "\u2581true"), models="mt5[-_](3b|13b)[-_]mmarco"
)
"""mt5-3B-mmarco-en-pt and mt5-13b-mmarco-100k. mT5's tokenizer splits the word "false" into a space and a piece."""

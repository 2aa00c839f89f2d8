"""ctxl-rerank-v2-instruct-multilingual (1b, 2b, 6b): plain text, scored by the logit of token 0.

Source: the models' cards by ContextualAI. The card rounds the logit to bfloat16; it is left whole here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class CtxlTemplate:
    """The document comes first, so that prompts of a request share their first line alone."""

    takes_instruction: bool = True
    verbatim: bool = True
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        question = f"{query} {instruction}" if instruction else query
        return (
            "Check whether a given document contains information helpful to answer the query.\n"
            f"<Document> {document}\n<Query> {question} ??"
        )


CTXL_RERANK = Recipe(
    "ctxl-rerank",
    family="decoder",
    answers=("!",),
    activation="identity",
    template=CtxlTemplate(),
    models="ctxl[-_]rerank",
)
"""`!` is the token of id 0."""

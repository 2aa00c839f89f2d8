"""zerank-1, zerank-1-small and zerank-2: a document under a query as its system turn, scored by one token.

Source: `modeling_zeranker.py` of zeroentropy's models, and vLLM's template for zerank-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerankd.models.recipes.recipe import Recipe

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence


@dataclass(frozen=True, slots=True)
class ZerankTemplate:
    """The query is the system's turn, the document the user's; white space around each is removed."""

    takes_instruction: bool = True
    verbatim: bool = False
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        if instruction:
            query = f"<query>{query}</query>\n<instruction>{instruction}</instruction>"
        return (
            f"<|im_start|>system\n{query.strip()}<|im_end|>\n<|im_start|>user\n{document.strip()}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )


def _is_zerank(evidence: Evidence) -> str | None:
    return "it holds modeling_zeranker.py" if (evidence.folder / "modeling_zeranker.py").is_file() else None


ZERANK = Recipe(
    "zerank",
    family="decoder",
    answers=("Yes",),
    divisor=5.0,
    template=ZerankTemplate(),
    models="zerank",
    recognised=_is_zerank,
)

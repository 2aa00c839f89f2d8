"""Recipes: the facts, beside the weights, that scoring a model as its authors do needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rerankd.media.sizing import Sizing
from rerankd.models.recipes.template import Images, ListTemplate, Marks, Template

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence


def nothing_known(evidence: Evidence) -> str | None:
    """`recognised` of a recipe for no model in particular."""
    return None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of model is scored.

    name: the name for `--recipe`
    family: the kind of scoring, for ready lines and answers
    pairs: whether the model reads query and document as one pair; otherwise it reads each text alone
    answers: a decoder's tokens (no, yes), whose difference of logits is the logit of the score, or one token, whose
        logit is; empty for other models
    divisor: the divisor of the logit of `answers`
    activation: the function from a decoder's logit to the score, unless the folder declares another
    template: writes a prompt; None for an encoder, whose tokenizer makes the prompt, and for an unknown prompt
    listwise: writes a prompt of several documents; None for a model that reads each document alone
    layerwise: whether `cutoff_layers` chooses the layer after which the score is read
    compresses: whether later layers may have fewer rows than a document has tokens, so that documents share no tokens
    processor: whether a processor of the authors' own writes the prompts, for sentence-transformers too; then a chat
        template in the folder is for other programs
    score_token: the id of the token after each prompt, at which the score is read; None for no such token
    logit_bias: is subtracted from the logit of the model's own classifier
    document_tokens: the most tokens of a document that the authors read by default; None for no limit
    supports_vision: whether its prompts may have images and videos
    images: the places of images: "mixed" with texts and videos, in any order; "alone", if a query or document is a text
        or one image; "first", if a document may have one image, before its texts, and a query none
    marks: the placeholder tokens of images and videos
    sizing: the authors' defaults for the size of images and videos
    query_prompt, document_prompt: the beginnings that a bi-encoder's authors give texts, for folders without prompts
    label: the label of a classifier whose probability is the score; None for relevance
    models: a regular expression for names of models, in any case; None for no model in particular
    recognised: returns the reason, as a clause, why a folder without such a name has one of these models, or None
    max_tokens: the most tokens of a prompt that the authors read by default; None for no limit
    refused: names of other models of the class, as in `models`, each with the reason for refusing it and the way out
    """

    name: str
    family: str
    pairs: bool = True
    answers: tuple[str, ...] = ()
    divisor: float = 1.0
    activation: Literal["sigmoid", "identity"] = "sigmoid"
    template: Template | None = None
    listwise: ListTemplate | None = None
    layerwise: bool = False
    compresses: bool = False
    processor: bool = False
    score_token: int | None = None
    logit_bias: float = 0.0
    document_tokens: int | None = None
    supports_vision: bool = False
    images: Images = "mixed"
    marks: Marks = Marks()  # noqa: RUF009 - frozen
    sizing: Sizing = Sizing()  # noqa: RUF009 - frozen
    query_prompt: str = ""
    document_prompt: str = ""
    label: str | None = None
    models: str | None = None
    recognised: Callable[[Evidence], str | None] = nothing_known
    max_tokens: int | None = None
    refused: tuple[tuple[str, str], ...] = ()

"""What a recipe is: all that must be known of a model, beside its weights, to score as its authors do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rerankd.models.recipes.template import ListTemplate, Template

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence


def nothing_known(evidence: Evidence) -> str | None:
    """A recipe for no model in particular."""
    return None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of model is scored.

    name: what a user calls it
    family: what ready lines and answers call its way to score
    pairs: whether query and document are read as one pair, else each by itself
    answers: the tokens (no, yes) of a decoder, whose difference of logits scores, or one, whose logit scores; empty
        for a model that is no decoder
    divisor: what the logit of `answers` is divided by
    activation: what makes a score of a decoder's logit, unless its folder says otherwise
    template: how a prompt is written; None for an encoder, whose tokenizer does that, and where nothing is known of it
    listwise: how a prompt of several documents is written; None for a model that reads each by itself
    layerwise: whether `cutoff_layers` says after which layer the score is read
    supports_vision: whether its prompts may hold images and videos
    query_prompt, document_prompt: what a bi-encoder's authors put before each text, where its folder says nothing
    label: the label of a classifier whose probability is the score; None for relevance
    models: a regular expression for the models' names, whose case does not matter; None for no model in particular
    recognised: says in a clause why a folder without such a name holds one of the models; None where it may not
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
    supports_vision: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    label: str | None = None
    models: str | None = None
    recognised: Callable[[Evidence], str | None] = nothing_known

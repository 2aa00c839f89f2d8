"""What a recipe is: all that must be known of a model, beside its weights, to score as its authors do."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.recipes.template import Template


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of model is scored.

    name: what a user calls it
    family: what ready lines and answers call its way to score
    pairs: whether query and document are read together, else each by itself
    answers: the tokens (no, yes) of a decoder, whose difference of logits scores, or one, whose logit scores; empty
        for a model that is no decoder
    template: how a decoder's prompt is written; None where nothing is known of it
    sees: whether its prompts may hold images and videos
    """

    name: str
    family: str
    pairs: bool = True
    answers: tuple[str, ...] = ()
    template: Template | None = None
    sees: bool = False

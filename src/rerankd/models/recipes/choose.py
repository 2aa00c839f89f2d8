"""Which recipe a checkpoint is scored by: the user's word, a sentence-transformers chain, or what the folder says.

The class of a decoder does not say what the model was trained for, so a decoder without a known recipe is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from rerankd.core import ModelError
from rerankd.models.answers import is_original_qwen3, named_tokens
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.late_interaction import is_late_interaction
from rerankd.models.checkpoint.modules import chain_of, embedding_modules, expect_modules
from rerankd.models.labels import read_labels, taken_labels
from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER, LATE_INTERACTION
from rerankd.models.recipes.evidence import Evidence
from rerankd.models.recipes.known import RECIPES
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER, QWEN3_VL_RERANKER
from rerankd.models.recipes.recipe import Recipe

OTHERS = ("jina[-_]reranker", "mxbai[-_]rerank", "qwen3[-_](vl[-_])?(embedding|guard)")
"""Names of models that share an architecture with a reranker that is served, and have another rule, or none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, and in a clause why it is chosen.

    certain: whether no part of the recipe is an assumption
    """

    recipe: Recipe
    why: str
    certain: bool = True


def choose_recipe(
    name: str, recipes: tuple[Recipe, ...], evidence: Evidence, requested: str | None, has_template: bool
) -> Choice:
    """The recipe of a checkpoint of the architecture `name`.

    recipes: the recipes that are known for the architecture
    requested: the recipe that the user names
    has_template: whether the user gives a chat template

    Raises ModelError for a checkpoint without a known recipe, a folder for another purpose, and a recipe that is
    unknown or for other models.
    """
    if LATE_INTERACTION in recipes and (len(recipes) == 1 or is_late_interaction(evidence.folder)):
        listed = "modules.json lists a chain that makes a vector of each token"
        return _one_of(
            (LATE_INTERACTION,), name, requested, f"it is the one for {name}" if len(recipes) == 1 else listed
        )
    match chain_of(evidence.folder):
        case "scores" if CROSS_ENCODER in recipes and len(recipes) > 1:
            why = "modules.json lists a chain that makes scores of pooled pairs"
            return _one_of((CROSS_ENCODER,), name, requested, why)
        case "embedding" if BI_ENCODER in recipes:
            embedding_modules(evidence.folder)
            return _embedding(
                tuple(recipe for recipe in recipes if recipe.family == BI_ENCODER.family), name, evidence, requested
            )
    candidates = tuple(recipe for recipe in recipes if recipe.pairs == recipes[0].pairs)
    has_chain = expect_modules(name, candidates[0], evidence.folder)
    if requested is not None:
        return Choice(
            _by_name(requested, name, candidates if candidates[0].answers else candidates[:1]),
            f"--recipe says {requested}",
        )
    _expect_served(candidates, evidence)
    if not candidates[0].answers:
        return Choice(candidates[0], f"it is the one for {name}")
    return _decoder(name, candidates, evidence, has_chain, has_template)


def with_label(choice: Choice, name: str, config: Config, label: str | None) -> Choice:
    """The choice with the label that the user names, or with the meaning that labels without a name are taken to have.

    name: the name of the architecture. ModelError for a model without such a label.
    """
    recipe = choice.recipe
    if label is None:
        assumption = (
            taken_labels(config) if recipe is CROSS_ENCODER and name.endswith("ForSequenceClassification") else None
        )
        return choice if assumption is None else replace(choice, why=f"{choice.why}; {assumption}", certain=False)
    if recipe.answers or recipe.layerwise or recipe.score_token is not None or not recipe.pairs:
        raise ModelError(
            f"--label {label[:80]} was given, but the recipe {recipe.name} scores by no labels; leave it out."
        )
    read_labels(config, label)
    return replace(choice, recipe=replace(recipe, label=label))


def expect_layerwise(choice: Choice, settings: Sequence[str]) -> None:
    """ModelError where the user gives settings of layerwise rerankers, and the model is none.

    settings: the settings, as the user writes them
    """
    if settings and not choice.recipe.layerwise:
        raise ModelError(
            f"{', '.join(settings)}: the recipe {choice.recipe.name} scores after its last layer, which reads all "
            "tokens; leave it out."
        )


def _expect_served(recipes: Sequence[Recipe], evidence: Evidence) -> None:
    """ModelError for a model that is known by its name, and known not to be scored by any of the recipes."""
    for pattern, reason in chain.from_iterable(recipe.refused for recipe in recipes):
        if name_source := evidence.named(pattern):
            raise ModelError(f"{evidence.config.source} is not served ({name_source}): {reason}.")


def _one_of(recipes: Sequence[Recipe], name: str, requested: str | None, why: str) -> Choice:
    if requested is not None:
        return Choice(_by_name(requested, name, recipes), f"--recipe says {requested}")
    return Choice(recipes[0], why)


def _embedding(recipes: Sequence[Recipe], name: str, evidence: Evidence, requested: str | None) -> Choice:
    """The recipe of an embedding model, whose prompts its folder says, or its name."""
    if requested is None and not evidence.prompts and (recognised := _recognised(recipes, evidence)):
        return recognised
    return _one_of(recipes, name, requested, "modules.json lists a chain that makes embeddings")


def _decoder(name: str, recipes: Sequence[Recipe], evidence: Evidence, chained: bool, has_template: bool) -> Choice:
    """The recipe of a decoder that is asked for answers."""
    recognised = _recognised(recipes, evidence)
    if chained:
        # The folder's chat template writes the prompt; a recipe's template is known only where the model is recognised.
        recipe = recognised.recipe if recognised else replace(recipes[0], name="sentence-transformers", template=None)
        return Choice(recipe, "modules.json lists a chain of sentence-transformers, which scores so")
    if is_original_qwen3(evidence.config) and recipes[0] in (QWEN3_RERANKER, QWEN3_VL_RERANKER):
        return Choice(recipes[0], "`is_original_qwen3_reranker` is true")
    if recognised:
        return recognised
    tokens = named_tokens(evidence.config)
    if has_template:
        templated = replace(recipes[0], name="chat-template", template=None, max_tokens=None)
        if tokens is not None:
            return Choice(templated, "a chat template and `classifier_from_token` are given")
        answers = " and ".join(map(shown, templated.answers))
        return Choice(templated, f"a chat template is given; the answers are taken to be {answers}", certain=False)
    if tokens is not None:
        reason = f"`classifier_from_token` is given; the prompt is taken to be that of {recipes[0].name}"
        return Choice(recipes[0], reason, certain=False)
    raise _unknown(name, recipes, evidence)


def _by_name(requested: str, name: str, recipes: Sequence[Recipe]) -> Recipe:
    for recipe in recipes:
        if recipe.name == requested:
            return recipe
    known = ", ".join(recipe.name for recipe in recipes)
    if requested not in RECIPES:
        raise ModelError(f"There is no recipe {shown(requested)}; for {name} there are {known}.")
    raise ModelError(f"The recipe {requested} is not for {name}; choose {known}, or leave --recipe out.")


def _recognised(recipes: Sequence[Recipe], evidence: Evidence) -> Choice | None:
    for recipe in recipes:
        if recipe.models is not None and (why := evidence.named(recipe.models)):
            return Choice(recipe, why)
    if any(map(evidence.named, OTHERS)):
        return None
    for recipe in recipes:
        if why := recipe.recognised(evidence):
            return Choice(recipe, why)
    return None


def _unknown(name: str, recipes: Sequence[Recipe], evidence: Evidence) -> ModelError:
    other = next(filter(None, map(evidence.named, OTHERS)), None)
    hint = f" ({other})" if other else ""
    known = " or ".join(recipe.name for recipe in recipes)
    return ModelError(
        f"{evidence.config.source}: {name} is the class of chat models too, and nothing in the folder says that this "
        f"is a reranker whose rule is known{hint}. Name its recipe (--recipe {known}), or give the prompt of another "
        """reranker with --chat-template and its answers with --hf-overrides '{"classifier_from_token": [...]}'."""
    )

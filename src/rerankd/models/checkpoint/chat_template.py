"""The chat template of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rerankd.core import ModelError
from rerankd.models.checkpoint.json_files import read_json


def chat_template(folder: Path) -> tuple[str | None, Path]:
    """The text of a folder's chat template, as transformers finds it, and its file; None where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        found: Any = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(found, list):
            named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found, path
    return None, path

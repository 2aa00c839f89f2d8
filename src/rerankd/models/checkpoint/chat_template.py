"""The chat template of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rerankd.core import ModelError
from rerankd.models.checkpoint.json_files import read_json


def chat_template(folder: Path) -> tuple[str | None, Path]:
    """The chat template of a folder, or None, and the file that holds the template (or would hold it).

    The files are searched in the order of transformers. Raises ModelError for a file that cannot be read.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template: Any = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, list):
            by_name = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
            template = by_name.get("default")
        if isinstance(template, str):
            return template, path
    return None, path

"""Files of queries or documents: each row holds an id, and a text, an image or a video."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal

from rerankd.core import InvalidRequest
from rerankd.rank.files import COMPRESSIONS, BadLine, BadLines, FileProblem, Source
from rerankd.rank.rows import Columns, rows
from rerankd.rank.values import to_content, well_formed

IDS = ("id", "_id", "docid", "doc_id", "pid", "corpus_id", "document_id", "docno")
QUERY_IDS = ("query_id", "qid")
TEXTS = Columns(
    names={
        "id": (*IDS, *QUERY_IDS),
        "title": ("title",),
        "text": ("text", "contents", "content", "body", "passage", "query", "document"),
        "image": ("image",),
        "video": ("video",),
    },
    positions={2: ("id", "text"), 3: ("id", "title", "text")},
)


def texts_of(path: str, what: Literal["queries", "corpus"], ids: Container[str], bad: BadLines) -> dict[str, str]:
    """The texts of some ids, from a file of queries or documents, or from a BEIR folder. Raises FileProblem.

    what: the file of a BEIR folder
    """
    source = Source(inside(path, what))
    texts: dict[str, str] = {}
    for number, row in rows(source, TEXTS, bad):
        try:
            id, value = text_of(source, number, row)
        except BadLine as problem:
            bad.add(problem)
            continue
        if id in ids:
            texts.setdefault(id, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return texts


def inside(path: str, name: str) -> str:
    """`path`, or the file `name` in it if `path` is a BEIR folder. Raises FileProblem if that file is missing."""
    if not Path(path).is_dir():
        return path
    for suffix in ("", *COMPRESSIONS):
        if (file := Path(path, f"{name}.jsonl{suffix}")).is_file():
            return str(file)
    raise FileProblem(f"{path} is a folder without a file {name}.jsonl.")


def text_of(source: Source, number: int, row: dict[str, Any]) -> tuple[str, Any]:
    """The id of a row, and its content as a JSON value that `to_content` accepts. Raises BadLine."""
    cells = TEXTS.read(row)
    if cells.get("id") is None:
        raise BadLine(source.name, number, "has no `id`.")
    id = well_formed(str(cells["id"]))
    title, text = cells.get("title"), cells.get("text")
    # An empty cell of a TSV or CSV file is no image.
    media = {name: cells[name] for name in ("image", "video") if cells.get(name, "") != ""}
    if title and not isinstance(title, str):
        raise BadLine(source.name, number, "`title` is not a string.")
    if title:
        text = _titled(title, text)
    value: Any = {"text": text, **media} if media else text
    if value is None:
        raise BadLine(source.name, number, "has no `text`.")
    if not isinstance(value, str):
        try:
            to_content(value, "text")
        except InvalidRequest as error:
            raise BadLine(source.name, number, f"{error}.") from None
    return id, value


def _titled(title: str, text: Any) -> Any:
    """A text with a title before it, in each form that `to_content` accepts. Other values are returned as they are."""
    if text is None:
        return title
    if isinstance(text, str):
        # BEIR joins a document's title and text in this way.
        return f"{title} {text}".strip()
    if isinstance(text, dict):
        key = "content" if "content" in text else "text"
        return {**text, key: _titled(title, text.get(key))}
    if not isinstance(text, list):
        return text
    for place, part in enumerate(text):
        if isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str)):
            return [*text[:place], _titled(title, part), *text[place + 1 :]]
    return [{"type": "text", "text": title}, *text]

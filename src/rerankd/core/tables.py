"""A result as a table of HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rerankd.core.contents import Content, Image, Text
from rerankd.core.results import ScoredDocument

CHARACTERS = 300
"""Characters of a document's text that the table shows."""


def table(scored: Iterable[ScoredDocument], documents: Sequence[Content], note: str) -> str:
    """The documents best first, with bars by score. The table has no script, and its colours suit light and dark pages.

    documents: the documents of the request, in order; empty if they are unknown
    note: stands below the table
    """
    rows = list(scored)
    highest = max([1.0, *(row.score for row in rows)])
    lowest = min([0.0, *(row.score for row in rows)])
    body = "".join(
        _row(rank, row, documents[row.index] if documents else (), (row.score - lowest) / (highest - lowest))
        for rank, row in enumerate(rows, 1)
    )
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("", "index", "score", "", "document"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><small>{escape(note)}</small>"


def _row(rank: int, scored: ScoredDocument, document: Content, share: float) -> str:
    bar = (
        "<div style='width:8em;background:rgba(128,128,128,.2);border-radius:3px'>"
        f"<div style='width:{100 * share:.1f}%;height:.7em;background:#3b7ddd;border-radius:3px'></div></div>"
    )
    cut = " <small>(cut to fit)</small>" if scored.truncated else ""
    cells = (str(rank), str(scored.index), f"{scored.score:.4f}", bar, f"{escape(_shown(document))}{cut}")
    return f"<tr>{''.join(f'<td style=text-align:left;vertical-align:top>{cell}</td>' for cell in cells)}</tr>"


def _shown(document: Content) -> str:
    text = " ".join(_part(part) for part in document)
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"


def _part(part: object) -> str:
    if isinstance(part, Text):
        return part.text
    return "[image]" if isinstance(part, Image) else "[video]"

"""The rows of pandas frames as pairs, and results as ranked rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rerankd.contents import ContentLike, to_content
from rerankd.core import Content, InvalidRequest, RerankResult

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger("rerankd")


def pairs_of(
    frame: DataFrame, query: ContentLike | None, query_column: str, document_column: str
) -> list[tuple[Content, Content]]:
    """The query and the document of each row.

    query: the query of all rows; None for the query of each row

    Raises InvalidRequest for what is no frame, for a column that is missing or there twice, and for a cell that is no
    content.
    """
    if not (hasattr(frame, "columns") and hasattr(frame, "iloc")):
        raise InvalidRequest("frame", f"is of the type {type(frame).__name__}; give a pandas DataFrame")
    single = None if query is None else to_content(query, "query")
    documents = _contents(frame, document_column)
    queries = _contents(frame, query_column) if single is None else [single] * len(documents)
    return list(zip(queries, documents, strict=True))


def _contents(frame: DataFrame, column: str) -> list[Content]:
    if column not in frame.columns:
        listed = ", ".join(map(str, frame.columns))
        raise InvalidRequest(column, f"is not a column of the frame, which has {listed or 'none'}")
    cells: Any = frame[column]
    if cells.ndim != 1:
        raise InvalidRequest(
            column, "is not the name of one column alone in the frame; give that column a name of its own"
        )
    return [_content(cell, _place(row, column)) for row, cell in enumerate(cells)]


def _content(cell: Any, place: str) -> Content:
    if not isinstance(cell, (str, Mapping, list, tuple)):
        raise InvalidRequest(place, f"has {cell!r}, which is not a text; leave such rows out")
    return to_content(cell, place)


def _place(row: int, column: str) -> str:
    return f"row {row}, column {column}"


def in_frame(
    error: InvalidRequest, rows: Sequence[int], query_column: str | None, document_column: str
) -> InvalidRequest:
    """The error of a request, with the row and the column of the cell that is wrong.

    rows: the rows of the request's documents
    query_column: None if the query is no cell
    """
    field = re.fullmatch(r"(?:(query)|documents\[(\d+)\])((?:\W.*)?)", error.field)
    if field is None or (field[1] and query_column is None):
        return error
    place = _place(rows[0], query_column or "") if field[1] else _place(rows[int(field[2])], document_column)
    return InvalidRequest(f"{place}{field[3]}", error.problem)


def warn(results: Sequence[tuple[RerankResult, Sequence[int]]], count: int) -> None:
    """Log how many of `count` rows were cut to fit, and what was ignored.

    results: the result of each query, with the rows of its documents
    """
    cut = [
        rows[place]
        for result, rows in results
        for place in (range(len(rows)) if result.query_truncated else result.truncated)
    ]
    if cut:
        log.warning("%d of %d rows were cut to fit, the first of them at %d", len(cut), count, min(cut))
    for name in sorted({name for result, _ in results for name in result.ignored}):
        log.warning("`%s` has no effect here, or less than was asked for", name)


def ranked_rows(frame: DataFrame, results: Sequence[tuple[RerankResult, Sequence[int]]]) -> DataFrame:
    """A frame's rows best first, each query's together, with columns `score`, `rank` and `truncated`.

    results: the result of each query, with the rows of its documents
    """
    ranking = [
        (rows[document.index], document, rank, document.truncated or result.query_truncated)
        for result, rows in results
        for rank, document in enumerate(result, 1)
    ]
    ranked = frame.iloc[[row for row, *_ in ranking]].copy()
    ranked["score"] = [document.score for _, document, *_ in ranking]
    ranked["rank"] = [rank for _, _, rank, _ in ranking]
    ranked["truncated"] = [truncated for *_, truncated in ranking]
    return ranked

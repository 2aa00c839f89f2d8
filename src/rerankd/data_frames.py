"""The rows of pandas frames as pairs, and results as ranked rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rerankd.contents import ContentLike
from rerankd.core import InvalidRequest, RerankResult

if TYPE_CHECKING:
    from pandas import DataFrame


def pairs_of(
    frame: DataFrame, query: ContentLike | None, query_column: str, document_column: str
) -> list[tuple[ContentLike, ContentLike]]:
    """The query and the document of each row.

    query: the query of all rows; None for the query of each row

    Raises InvalidRequest for a column that is missing, and for a cell that is no content.
    """
    columns = [document_column] if query is not None else [query_column, document_column]
    for column in columns:
        if column not in frame.columns:
            listed = ", ".join(map(str, frame.columns))
            raise InvalidRequest(column, f"is not a column of the frame, which has {listed or 'none'}")
    documents = list(frame[document_column])
    queries = [query] * len(documents) if query is not None else list(frame[query_column])
    pairs: list[Any] = list(zip(queries, documents, strict=True))
    for place, pair in enumerate(pairs):
        for column, cell in zip((query_column, document_column), pair, strict=True):
            if not isinstance(cell, (str, Mapping, list, tuple)):
                raise InvalidRequest(column, f"row {place} has {cell!r}, which is not a text; leave such rows out")
    return pairs


def ranked_rows(frame: DataFrame, results: Sequence[tuple[RerankResult, Sequence[int]]]) -> DataFrame:
    """A frame's rows best first, each query's together, with columns `score`, `rank` and `truncated`.

    results: the result of each query, with the rows of its documents
    """
    ranking = [
        (rows[document.index], document, rank) for result, rows in results for rank, document in enumerate(result, 1)
    ]
    ranked = frame.iloc[[row for row, _, _ in ranking]].copy()
    ranked["score"] = [document.score for _, document, _ in ranking]
    ranked["rank"] = [rank for _, _, rank in ranking]
    ranked["truncated"] = [document.truncated for _, document, _ in ranking]
    return ranked

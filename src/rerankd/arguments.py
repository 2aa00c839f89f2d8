"""Requests from the arguments of a Python caller, and scores of pairs in the order of the pairs."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from typing import Any

from rerankd.contents import ContentLike, to_content
from rerankd.core import (
    Chunking,
    Image,
    InvalidRequest,
    OnError,
    RerankRequest,
    RerankResult,
    Text,
    Truncation,
    Video,
    identity,
)

log = logging.getLogger("rerankd")


def requested(
    query: ContentLike,
    documents: Sequence[ContentLike],
    instruction: str | None,
    top_n: int | None,
    truncation: Truncation,
    chunking: Chunking | None,
    activation: bool,
    on_error: OnError = "fail",
    min_score: float | None = None,
) -> RerankRequest:
    """The request of a Python caller. Raises InvalidRequest for contents that cannot be read."""
    if min_score is not None and not math.isfinite(min_score):
        raise InvalidRequest("min_score", f"must be a finite number, not {min_score}; leave it out for all documents")
    if isinstance(documents, str):
        raise InvalidRequest("documents", "must be a list of documents, not one string; put it in a list")
    contents = tuple(to_content(document, f"documents[{i}]") for i, document in enumerate(documents))
    return RerankRequest(
        to_content(query, "query"),
        contents,
        instruction,
        top_n,
        truncation,
        activation,
        on_error,
        chunking,
        min_score=min_score,
    )


def queries_with_documents(query: Any, documents: Any) -> list[tuple[ContentLike, Sequence[ContentLike]]] | None:
    """Each of several queries with its documents; None for one query.

    A list is several queries unless it holds the parts of a content. They share the documents, unless these are lists
    of documents themselves, one for each query. Raises InvalidRequest for another number of lists.
    """
    if not isinstance(query, (list, tuple)) or not query or _is_content(query):
        return None
    if isinstance(documents, str):
        raise InvalidRequest("documents", "must be a list of documents, not one string; put it in a list")
    lists = [isinstance(item, (list, tuple)) and not _is_content(item) for item in documents]
    if not any(lists):
        return [(single, documents) for single in query]
    if not all(lists) or len(lists) != len(query):
        raise InvalidRequest(
            "documents", f"must be one list for all, or {len(query)} lists for as many queries, not {len(lists)}"
        )
    return list(zip(query, documents, strict=True))


def _is_content(value: Sequence[Any]) -> bool:
    """Whether a list holds the parts of one content."""
    return bool(value) and all(isinstance(part, (Text, Image, Video)) for part in value)


def by_query(
    pairs: Sequence[tuple[ContentLike, ContentLike]],
    instruction: str | None,
    truncation: Truncation,
    chunking: Chunking | None,
    activation: bool,
) -> list[tuple[RerankRequest, list[int]]]:
    """One request for each different query, with the places of its pairs."""
    places: dict[Hashable, list[int]] = {}
    queries = [to_content(query, f"pairs[{i}][0]") for i, (query, _) in enumerate(pairs)]
    for i, query in enumerate(queries):
        places.setdefault(tuple(map(identity, query)), []).append(i)
    return [
        (
            requested(
                queries[indices[0]], [pairs[i][1] for i in indices], instruction, None, truncation, chunking, activation
            ),
            indices,
        )
        for indices in places.values()
    ]


def scores_in_place(results: Sequence[tuple[RerankResult, list[int]]], count: int) -> list[float]:
    """The scores of `count` pairs; cuts and ignored fields are logged.

    results: those of `by_query`'s requests, with the places of their pairs
    """
    scores = [math.nan] * count
    cut: list[int] = []
    for result, places in results:
        for document in result.documents:
            scores[places[document.index]] = document.score
            if document.truncated or result.query_truncated:
                cut.append(places[document.index])
    if cut:
        log.warning("%d of %d pairs were cut to fit, the first of them at %d", len(cut), count, min(cut))
    for name in sorted({name for result, _ in results for name in result.ignored}):
        log.warning("`%s` has no effect here, or less than was asked for", name)
    return scores

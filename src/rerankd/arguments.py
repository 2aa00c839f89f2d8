"""What a Python caller gives, as requests, and scores of pairs in the order that they were given in."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence

from rerankd.contents import ContentLike, to_content
from rerankd.core import Chunking, InvalidRequest, OnError, RerankRequest, RerankResult, Truncation, identity

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
) -> RerankRequest:
    """The request of a Python caller. Raises InvalidRequest for contents that cannot be read."""
    if isinstance(documents, str):
        raise InvalidRequest("documents", "must be a list of documents, not one string; put it in a list")
    contents = tuple(to_content(document, f"documents[{i}]") for i, document in enumerate(documents))
    return RerankRequest(
        to_content(query, "query"), contents, instruction, top_n, truncation, activation, on_error, chunking
    )


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
            requested(queries[own[0]], [pairs[i][1] for i in own], instruction, None, truncation, chunking, activation),
            own,
        )
        for own in places.values()
    ]


def scores_in_place(results: Sequence[tuple[RerankResult, list[int]]], count: int) -> list[float]:
    """The scores of `count` pairs; what was cut or ignored is logged.

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

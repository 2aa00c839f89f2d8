"""Requests from the arguments of a Python caller, and scores of pairs in the order of the pairs."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

from rerankd.contents import ContentLike, to_content
from rerankd.core import (
    Chunking,
    Image,
    InvalidRequest,
    OnError,
    RerankRequest,
    RerankResult,
    Side,
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
    """The request of a Python caller. Raises InvalidRequest for contents that cannot be read, and for other types."""
    _expect("instruction", instruction, str, "a string")
    _expect("top_n", top_n, Integral, "a whole number")
    _expect("min_score", min_score, Real, "a number")
    if min_score is not None and not math.isfinite(min_score):
        raise InvalidRequest("min_score", f"must be a finite number, not {min_score}; leave it out for all documents")
    _expect_one_of("on_error", on_error, get_args(OnError))
    _check_lengths(truncation, chunking)
    contents = tuple(to_content(document, f"documents[{i}]") for i, document in enumerate(_listed(documents)))
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
    if not isinstance(query, (list, tuple)) or _is_content(query):
        return None
    documents = list(_listed(documents))
    lists = [isinstance(item, (list, tuple)) and not _is_content(item) for item in documents]
    if not any(lists):
        return [(single, documents) for single in query]
    if not all(lists) or len(lists) != len(query):
        raise InvalidRequest(
            "documents", f"must be one list for all, or {len(query)} lists for as many queries, not {len(lists)}"
        )
    return list(zip(query, documents, strict=True))


def _listed(documents: Any) -> Iterable[Any]:
    """The documents. Raises InvalidRequest for one document, whose characters or keys would be documents."""
    if isinstance(documents, (str, Mapping)):
        kind = "string" if isinstance(documents, str) else "dict"
        raise InvalidRequest("documents", f"must be a list of documents, not one {kind}; put it in a list")
    _expect("documents", documents, Iterable, "a list of documents", optional=False)
    listed: Iterable[Any] = documents
    return listed


def _pair(pair: Any, field: str) -> tuple[Any, Any]:
    """The query and the document of an item. Raises InvalidRequest for an item that is no pair."""
    if isinstance(pair, (str, bytes, Mapping)) or not isinstance(pair, Iterable):
        raise InvalidRequest(field, f"is of the type {type(pair).__name__}; give a tuple of a query and a document")
    items = tuple(pair)
    if len(items) != 2:
        raise InvalidRequest(field, f"has {len(items)} items; give a tuple of a query and a document")
    return items


def _check_lengths(truncation: Truncation, chunking: Chunking | None) -> None:
    _expect("truncation", truncation, Truncation, "a Truncation", optional=False)
    for name in ("max_tokens", "max_tokens_per_doc", "max_tokens_per_query"):
        _expect(f"truncation.{name}", getattr(truncation, name), Integral, "a whole number")
    if truncation.side is not None:
        _expect_one_of("truncation.side", truncation.side, get_args(Side))
    _expect("chunking", chunking, Chunking, "a Chunking")
    if chunking is not None:
        _expect("chunking.max_chunks_per_doc", chunking.max_chunks_per_doc, Integral, "a whole number")
        _expect("chunking.overlap_tokens", chunking.overlap_tokens, Integral, "a whole number", optional=False)


def _expect(field: str, value: object, kind: type, words: str, optional: bool = True) -> None:
    """Raises InvalidRequest for a value of another type; True and False are no numbers."""
    if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
        return
    raise InvalidRequest(field, f"is of the type {type(value).__name__}; give {words}")


def _expect_one_of(field: str, value: object, values: Sequence[str]) -> None:
    if value not in values:
        raise InvalidRequest(field, f"is {value!r}; give {' or '.join(map(repr, values))}")


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
    """One request for each different query, with the places of its pairs. Raises InvalidRequest for other items."""
    pairs = [_pair(pair, f"pairs[{i}]") for i, pair in enumerate(pairs)]
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

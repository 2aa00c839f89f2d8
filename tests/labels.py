"""Requests for the probabilities of labels, as SGLang's `/v1/score` puts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from rerankd.core import Content, Labels, RerankRequest, Text, Tokens

Piece: TypeAlias = str | tuple[int, ...]


def label_request(
    prompts: Sequence[Piece], labels: Labels, shared: Piece | None = None, shared_last: bool = False
) -> RerankRequest:
    """Prompts as they stand, with what each begins with, or ends with."""
    query = () if shared is None else _content(shared)
    return RerankRequest(query, tuple(map(_content, prompts)), labels=replace(labels, query_last=shared_last))


def written_out(request: RerankRequest) -> list[Any]:
    """The whole prompts of a request, what they share put before or behind each."""
    assert request.labels is not None
    documents = [_piece(document) for document in request.documents]
    if not request.query:
        return documents
    shared = _piece(request.query)
    return [one + shared if request.labels.query_last else shared + one for one in documents]


def _content(piece: Piece) -> Content:
    return (Text(piece),) if isinstance(piece, str) else (Tokens(piece),)


def _piece(content: Content) -> Any:
    (part,) = content
    assert isinstance(part, Text | Tokens)
    return part.text if isinstance(part, Text) else part.ids

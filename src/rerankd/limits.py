"""Limits on the size of one request, in a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerankd.core import MAX_CHARACTERS, InvalidRequest

LimitName: TypeAlias = Literal["values", "documents", "characters", "parts", "fields", "labels", "chunks", "tokens"]
WHAT: dict[LimitName, str] = {
    "values": "JSON values",
    "documents": "documents",
    "characters": "characters of one text",
    "parts": "content parts",
    "fields": "fields to read of a document",
    "labels": "labels",
    "chunks": "chunks",
    "tokens": "prompt tokens",
}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits on one request. Each limit has the flag `--max-request-NAME`, and errors name the flag.

    values: JSON values in a body, and numbers or tokens' fields in an answer
    documents: documents, pairs or items
    characters: characters of the query, of a document, or of the instruction; `LoadOptions.max_characters` enforces it
    parts: content parts of the query and of all documents
    fields: fields to read from a document that is an object
    labels: tokens whose probabilities the request asks for
    chunks: chunks of all documents
    tokens: tokens of all prompts, each counted whole, as `usage` reports them
    """

    values: int = 1_000_000
    documents: int = 10_000
    characters: int = MAX_CHARACTERS
    parts: int = 100_000
    fields: int = 100
    labels: int = 1_000
    chunks: int = 20_000
    tokens: int = 4_000_000

    def exceeded(self, name: LimitName) -> str:
        """The message for a request above a limit."""
        return (
            f"more than {getattr(self, name):,} {WHAT[name]} in one request; send less at a time, or start the server "
            f"with a larger --max-request-{name}"
        )

    def check(self, name: LimitName, count: int, field: str) -> None:
        """Raise InvalidRequest, which names `field`, for a count above a limit."""
        if count > getattr(self, name):
            raise InvalidRequest(field, self.exceeded(name))

"""Limits on the tokens of a request's prompts, and the errors for longer prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rerankd import work
from rerankd.core import Chunking, Content, InvalidRequest, RerankRequest, Side, Text


@dataclass(frozen=True, slots=True)
class Limits:
    """A request's limits in tokens: of a whole prompt, of a document and of a query (None: no limit of its own).

    side: the side on which a text is cut
    chunking: splits a document that does not fit; None to cut the document
    """

    prompt: int
    document: int | None
    query: int | None
    may_cut: bool
    side: Side
    chunking: Chunking | None

    @classmethod
    def of(cls, request: RerankRequest, max_tokens: int, side: Side = "right") -> Limits:
        """The limits that a request sets, within the model's own. InvalidRequest for impossible limits.

        side: where a text is cut, unless the request says so
        """
        truncation, chunking = request.truncation, request.chunking
        for name in ("max_tokens", "max_tokens_per_doc", "max_tokens_per_query"):
            value = getattr(truncation, name)
            if value is not None and value < 1:
                raise InvalidRequest(
                    f"truncation.{name}", f"must be at least 1, not {value}; leave it out for no limit"
                )
        if truncation.side not in ("left", "right", None):
            raise InvalidRequest("truncation.side", f"must be 'left' or 'right', not {truncation.side!r}")
        requested = truncation.max_tokens
        prompt = max_tokens if requested is None else min(requested, max_tokens)
        if chunking is not None:
            most = chunking.max_chunks_per_doc
            if most is not None and most < 1:
                raise InvalidRequest(
                    "chunking.max_chunks_per_doc", f"must be at least 1, not {most}; leave it out for no limit"
                )
            if chunking.overlap_tokens < 0:
                raise InvalidRequest("chunking.overlap_tokens", f"must be at least 0, not {chunking.overlap_tokens}")
        return cls(
            prompt=prompt,
            document=truncation.max_tokens_per_doc,
            query=truncation.max_tokens_per_query,
            may_cut=truncation.allowed,
            side=truncation.side or side,
            chunking=chunking,
        )

    @property
    def reach(self) -> int | None:
        """The tokens of a text, from the kept side, beyond which nothing is read; None to read all of the text."""
        if not self.may_cut:
            return None
        if self.chunking is None:
            return self.prompt
        # Chunks report their offsets from the text's start, which a part from the end does not know.
        most = self.chunking.max_chunks_per_doc
        return None if most is None or self.side == "left" else most * self.prompt

    def exceeded(self, field: str, subject: str, tokens: int, limit: int) -> bool:
        """Whether `tokens` are more than `limit` and must be cut. Raises InvalidRequest if nothing may be cut."""
        if tokens > limit and not self.may_cut:
            work.refuse(
                InvalidRequest(
                    field, f"{subject} takes {tokens} tokens and {limit} are allowed; shorten it, or allow truncation"
                )
            )
        return tokens > limit

    def cut(
        self, field: str, subject: str, ids: list[int], limit: int | None, beside: int = 0, head: int = 0
    ) -> list[int]:
        """`ids`, or `limit` of them; InvalidRequest, as `exceeded`, where nothing may be cut.

        beside: the prompt's other tokens, which the error counts too
        head: the number of first tokens that stay when the beginning is cut
        """
        if limit is None or not self.exceeded(field, subject, len(ids) + beside, limit + beside):
            return ids
        return ids[:head] + self.side_of(ids[head:], limit - head)

    def not_nothing(self, field: str, text: str, remainder: str, budget: int) -> str:
        """The rest of a text that was cut; InvalidRequest for an empty rest of a text that was not empty."""
        if text and not remainder:
            which = "first" if self.side == "right" else "last"
            work.refuse(
                InvalidRequest(field, f"its {which} character alone does not fit into {budget} tokens; raise the limit")
            )
        return remainder

    def side_of(self, ids: list[int], count: int) -> list[int]:
        """The `count` ids that stay when the others are cut."""
        return ids[:count] if self.side == "right" else ids[len(ids) - count :]


def limit_too_low(limit: int, needed: int, least: int = 0) -> InvalidRequest:
    """The error for a prompt whose template alone is too long, or leaves fewer than `least` tokens."""
    return InvalidRequest(
        "truncation.max_tokens",
        f"{limit} tokens are allowed, and the prompt without query and document takes {needed}; "
        f"allow at least {needed + least}",
    )


def within_characters(request: RerankRequest, most: int) -> RerankRequest:
    """Check that texts of a request have at most `most` characters: a longer text takes memory before it is cut.

    Raises InvalidRequest for a longer text. A document that is left out for its length is empty in the result.
    """

    def characters(content: Content) -> int:
        return sum(len(part.text) for part in content if isinstance(part, Text))

    for field, count in (("query", characters(request.query)), ("instruction", len(request.instruction or ""))):
        if count > most:
            raise too_many_characters(field, count, most)
    counts = [characters(document) for document in request.documents]
    if max(counts, default=0) <= most:
        return request
    for i, count in enumerate(counts):
        if count > most:
            work.refuse(too_many_characters(f"documents[{i}]", count, most))
    documents = tuple(() if n > most else document for n, document in zip(counts, request.documents, strict=True))
    return replace(request, documents=documents)


def too_many_characters(field: str, count: int, most: int) -> InvalidRequest:
    """The error for a text of too many characters."""
    return InvalidRequest(
        field,
        f"has {count} characters, and {most} are allowed in one text (--max-request-characters, in Python "
        "max_characters); shorten it, or split it into several",
    )

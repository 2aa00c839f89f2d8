"""How many tokens a request's prompts may have, and what is said of one that has more."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd import work
from rerankd.core import Chunking, InvalidRequest, RerankRequest, Side


@dataclass(frozen=True, slots=True)
class Limits:
    """A request's limits in tokens: of a whole prompt, of a document and a query (None: no own limit).

    side: where a text is cut
    chunking: how a document that does not fit is split; None where it is cut
    """

    prompt: int
    document: int | None
    query: int | None
    may_cut: bool
    side: Side
    chunking: Chunking | None

    @classmethod
    def of(cls, request: RerankRequest, max_tokens: int) -> Limits:
        """The limits that a request sets, within the model's own. InvalidRequest for those that cannot be."""
        truncation, chunking = request.truncation, request.chunking
        for name in ("max_tokens", "max_tokens_per_doc", "max_tokens_per_query"):
            value = getattr(truncation, name)
            if value is not None and value < 1:
                raise InvalidRequest(
                    f"truncation.{name}", f"must be at least 1, not {value}; leave it out for no limit"
                )
        if truncation.side not in ("left", "right"):
            raise InvalidRequest("truncation.side", f"must be 'left' or 'right', not {truncation.side!r}")
        asked = truncation.max_tokens
        prompt = max_tokens if asked is None else min(asked, max_tokens)
        document = truncation.max_tokens_per_doc
        if chunking is not None:
            most = chunking.max_chunks_per_doc
            if most is not None and most < 1:
                raise InvalidRequest(
                    "chunking.max_chunks_per_doc", f"must be at least 1, not {most}; leave it out for no limit"
                )
            if chunking.overlap_tokens < 0:
                raise InvalidRequest("chunking.overlap_tokens", f"must be at least 0, not {chunking.overlap_tokens}")
            if chunking.overlap_tokens >= (room := min(prompt, document or prompt)):
                raise overlap_too_large(chunking.overlap_tokens, room)
        return cls(
            prompt=prompt,
            document=document,
            query=truncation.max_tokens_per_query,
            may_cut=truncation.allowed,
            side=truncation.side,
            chunking=chunking,
        )

    @property
    def reach(self) -> int | None:
        """Tokens of a text, from the side that is kept, beyond which nothing of it is read; None for all of it."""
        if not self.may_cut:
            return None
        if self.chunking is None:
            return self.prompt
        # Chunks say where they lie in the text, which the end of one does not.
        most = self.chunking.max_chunks_per_doc
        return None if most is None or self.side == "left" else most * self.prompt

    def exceeded(self, field: str, what: str, tokens: int, limit: int) -> bool:
        """Whether `tokens` are more than `limit` and must be cut; InvalidRequest where nothing may be cut."""
        if tokens > limit and not self.may_cut:
            work.refuse(
                InvalidRequest(
                    field, f"{what} takes {tokens} tokens and {limit} are allowed; shorten it, or allow truncation"
                )
            )
        return tokens > limit

    def cut(
        self, field: str, what: str, ids: list[int], limit: int | None, beside: int = 0, head: int = 0
    ) -> list[int]:
        """`ids`, or `limit` of them; InvalidRequest, as `exceeded`, where nothing may be cut.

        beside: tokens that stand beside these in the prompt, counted in what the error says
        head: how many first tokens stay when the beginning is cut
        """
        if limit is None or not self.exceeded(field, what, len(ids) + beside, limit + beside):
            return ids
        return ids[:limit] if self.side == "right" else ids[:head] + ids[len(ids) - (limit - head) :]


def no_room(limit: int, needed: int) -> InvalidRequest:
    """What to raise where a prompt of nothing but the template is too long."""
    return InvalidRequest(
        "truncation.max_tokens", f"{limit} tokens are allowed, and the prompt without query and document takes {needed}"
    )


def overlap_too_large(overlap: int, room: int) -> InvalidRequest:
    """What to raise for an overlap as long as a chunk."""
    return InvalidRequest(
        "chunking.overlap_tokens",
        f"must be less than the {room} tokens that a chunk has room for, not {overlap}",
    )

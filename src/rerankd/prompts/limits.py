"""How many tokens a request's prompts may have, and what is said of one that has more."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.core import InvalidRequest, Truncation


@dataclass(frozen=True, slots=True)
class Limits:
    """A request's limits in tokens: of a whole prompt, of a document and a query (None: no own limit)."""

    prompt: int
    document: int | None
    query: int | None
    may_cut: bool

    @classmethod
    def of(cls, truncation: Truncation, max_tokens: int) -> Limits:
        """The limits that a request sets, within the model's own. InvalidRequest for one below 1."""
        for name in ("max_tokens", "max_tokens_per_doc", "max_tokens_per_query"):
            value = getattr(truncation, name)
            if value is not None and value < 1:
                raise InvalidRequest(
                    f"truncation.{name}", f"must be at least 1, not {value}; leave it out for no limit"
                )
        asked = truncation.max_tokens
        return cls(
            prompt=max_tokens if asked is None else min(asked, max_tokens),
            document=truncation.max_tokens_per_doc,
            query=truncation.max_tokens_per_query,
            may_cut=truncation.allowed,
        )

    def exceeded(self, field: str, what: str, tokens: int, limit: int) -> bool:
        """Whether `tokens` are more than `limit` and must be cut; InvalidRequest where nothing may be cut."""
        if tokens > limit and not self.may_cut:
            raise InvalidRequest(
                field, f"{what} takes {tokens} tokens and {limit} are allowed; shorten it, or allow truncation"
            )
        return tokens > limit

    def cut(self, field: str, what: str, ids: list[int], limit: int | None, beside: int = 0) -> list[int]:
        """`ids`, or the first `limit` of them; InvalidRequest, as `exceeded`, where nothing may be cut.

        beside: tokens that stand beside these in the prompt, counted in what the error says
        """
        if limit is None or not self.exceeded(field, what, len(ids) + beside, limit + beside):
            return ids
        return ids[:limit]


def no_room(limit: int, needed: int) -> InvalidRequest:
    """What to raise where a prompt of nothing but the template is too long."""
    return InvalidRequest(
        "truncation.max_tokens", f"{limit} tokens are allowed, and the prompt without query and document takes {needed}"
    )

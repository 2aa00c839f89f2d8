"""Numbers with their nouns, in texts for people."""

from __future__ import annotations


def noun(count: int, singular: str, plural: str | None = None) -> str:
    """The noun that goes with a number: `query` with 1, else `plural`, by default the singular with an s."""
    return singular if count == 1 else plural or f"{singular}s"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number and its noun: `1 query`, `2,000 queries`."""
    return f"{count:,} {noun(count, singular, plural)}"

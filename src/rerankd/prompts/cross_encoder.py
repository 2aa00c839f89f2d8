"""Prompts of cross-encoders: (query, document) in the tokenizer's own pair template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rerankd.core import PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks, reduced_overlap
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.tokenizer import LoadedTokenizer


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as far as it was read.

    text: all of it; reached: the part of it that was tokenised
    ids: the tokens of that part
    own: the most tokens of the text by its own limit, None for no such limit
    """

    text: str
    reached: str
    ids: list[int]
    own: int | None

    @property
    def tokens(self) -> int:
        """How many tokens the text is known to have within its own limit."""
        return len(self.ids) if self.own is None else min(len(self.ids), self.own)

    @property
    def counted(self) -> bool:
        """Whether it has no more of them."""
        return len(self.reached) == len(self.text) or self.tokens == self.own


class CrossEncoderPrompts:
    """A PromptBuilder. A pair that does not fit is cut as sentence-transformers' `CrossEncoder` cuts it.

    Special tokens are never cut.
    """

    takes_instruction = False

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, query_prompt: str = "") -> None:
        """query_prompt: what each query begins with; cut with it where it does not fit."""
        self._special = SpecialTokens(tokenizer.tokenizer, pair=True)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens
        self._side = tokenizer.side
        self._query_prompt = query_prompt

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's pairs, with an empty prefix. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        special = self._special.count
        room = limits.prompt - special
        if room < 2:  # a query or a document of nothing would have a score that means nothing
            raise no_room(limits.prompt, special, 2)
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        query, *documents = self._read(self._query_prompt + read_text(request.query, "query"), texts, limits)
        query_ids = limits.cut("query", "it", query.ids, limits.query)
        limits.exceeded("query", "the prompt without any document", len(query_ids) + special, limits.prompt)
        query_truncated = len(query_ids) < len(query.ids)
        # Counted once where a document's share depends on it.
        all_query_tokens = cache(lambda: self._count(query))
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        chunks: list[Chunks | None] = []
        for i, document in enumerate(documents):
            field = f"documents[{i}]"
            if split := self._split(document, query.tokens, room, limits, field):
                pieces = self._plain.ids([chunk.text for chunk in split.chunks])
                shares = [longest_first(query.tokens, len(piece), room) for piece in pieces]
                truncated.append(not split.whole)
            else:
                ids = limits.cut(field, "it", document.ids, limits.document)
                limits.exceeded(field, "its prompt", len(query_ids) + len(ids) + special, limits.prompt)
                tokens = query.tokens, document.tokens
                if not _settled(query, document, room):
                    tokens = all_query_tokens(), self._count(document)
                pieces, shares = [ids], [longest_first(*tokens, room)]
                truncated.append(shares[0][1] < len(document.ids))
            for piece, (first, second) in zip(pieces, shares, strict=True):
                query_truncated |= first < len(query_ids)
                suffixes.append(self._special.around(limits.side_of(query_ids, first), limits.side_of(piece, second)))
            chunks.append(split)
        return PromptGroup(
            prefix=Segment([]),
            suffixes=tuple(suffixes),
            truncated=tuple(truncated),
            query_truncated=query_truncated,
            chunks=tuple(split.chunks if split else () for split in chunks) if any(chunks) else (),
            ignored=reduced_overlap(chunks),
        )

    def _read(self, query: str, documents: Sequence[str], limits: Limits) -> list[Reading]:
        """The query and the documents, each as far as a prompt can need it."""
        texts = [query, *documents]
        reached = [self._plain.reach(query, limits.prompt, limits)]
        reached += [self._plain.reach(document, limits.reach, limits) for document in documents]
        owns = [limits.query, *[limits.document] * len(documents)]
        return list(map(Reading, texts, reached, self._plain.ids(reached), owns))

    def _count(self, reading: Reading) -> int:
        """How many tokens a text has within its own limit, all of it read."""
        if reading.counted:
            return reading.tokens
        tokens = len(self._plain.ids([reading.text])[0])
        return tokens if reading.own is None else min(tokens, reading.own)

    def _split(self, document: Reading, query: int, room: int, limits: Limits, field: str) -> Chunks | None:
        """A document's chunks, where they are asked for and it does not fit.

        A chunk takes what the query leaves, and half the room at least, so that it is never the chunk that a pair
        loses tokens of.

        query: its tokens; room: the most of a pair
        """
        if limits.chunking is None:
            return None
        most = max(room - query, room // 2) if limits.may_cut else room - query
        if limits.document is not None:
            most = min(most, limits.document)
        if len(document.ids) <= most:
            return None
        return self._plain.split(
            document.reached, most, limits, lambda piece: len(self._plain.ids([piece])[0]) - most, field
        )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps when both have `room`: the longer one loses what is too much.

    Where each has more than half, each keeps half; of an odd room the longer one, else the second, keeps one more.
    Source: `LongestFirst` of the `tokenizers` library, which transformers and sentence-transformers cut pairs by.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)


def _settled(first: Reading, second: Reading, room: int) -> bool:
    """Whether each one's share is what its known tokens make it, whatever follows these.

    It is but for the odd token of two texts that both have more than half: the longer one keeps that.
    """
    if room % 2 == 0 or min(first.tokens, second.tokens) <= room // 2:
        return True
    if first.tokens > second.tokens:
        return second.counted
    return first.counted

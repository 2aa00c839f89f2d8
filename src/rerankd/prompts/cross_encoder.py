"""Prompts of cross-encoders: (query, document) in the tokenizer's own pair template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rerankd.core import PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks, reduced_overlap
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, limit_too_low
from rerankd.prompts.tokenizer import LoadedTokenizer


@dataclass(frozen=True, slots=True)
class ReadText:
    """The part of a text that was read.

    text: the whole text; reached: the part that was tokenised
    ids: the token ids of that part
    limit: the text's own limit in tokens; None for no limit
    """

    text: str
    reached: str
    ids: list[int]
    limit: int | None

    @property
    def tokens(self) -> int:
        """The tokens of the text that are known, within its own limit."""
        return len(self.ids) if self.limit is None else min(len(self.ids), self.limit)

    @property
    def counted(self) -> bool:
        """Whether the text has no more tokens than these."""
        return len(self.reached) == len(self.text) or self.tokens == self.limit


class CrossEncoderPrompts:
    """A PromptBuilder. A pair that does not fit is cut as sentence-transformers' `CrossEncoder` cuts it.

    Special tokens are never cut.
    """

    takes_instruction = False

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, query_prompt: str = "") -> None:
        """query_prompt: the beginning of each query; cut with the query where it does not fit."""
        self._special = SpecialTokens(tokenizer.tokenizer, pair=True)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens
        self._side = tokenizer.side
        self._query_prompt = query_prompt

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's pairs, with an empty prefix. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        special = self._special.count
        budget = limits.prompt - special
        if budget < 2:  # a query or a document of nothing would have a score that means nothing
            raise limit_too_low(limits.prompt, special, 2)
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
            if split := self._split(document, query.tokens, budget, limits, field):
                pieces = self._plain.ids([chunk.text for chunk in split.chunks])
                shares = [longest_first(query.tokens, len(piece), budget) for piece in pieces]
                truncated.append(not split.whole)
            else:
                ids = limits.cut(field, "it", document.ids, limits.document)
                limits.exceeded(field, "its prompt", len(query_ids) + len(ids) + special, limits.prompt)
                tokens = query.tokens, document.tokens
                if not _settled(query, document, budget):
                    tokens = all_query_tokens(), self._count(document)
                pieces, shares = [ids], [longest_first(*tokens, budget)]
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

    def _read(self, query: str, documents: Sequence[str], limits: Limits) -> list[ReadText]:
        """The query and the documents. Of each, only the part that a prompt can hold is tokenised."""
        texts = [query, *documents]
        reached = [self._plain.reach(query, limits.prompt, limits)]
        reached += [self._plain.reach(document, limits.reach, limits) for document in documents]
        own_limits = [limits.query, *[limits.document] * len(documents)]
        return list(map(ReadText, texts, reached, self._plain.ids(reached), own_limits))

    def _count(self, text: ReadText) -> int:
        """The tokens of a whole text, within its own limit."""
        if text.counted:
            return text.tokens
        tokens = len(self._plain.ids([text.text])[0])
        return tokens if text.limit is None else min(tokens, text.limit)

    def _split(self, document: ReadText, query: int, budget: int, limits: Limits, field: str) -> Chunks | None:
        """A document's chunks, where they are asked for and it does not fit.

        A chunk has the tokens that the query leaves, and at least half the budget, so that the pair never loses tokens
        of the chunk.

        query: its tokens; budget: the tokens that a query and a document may have together
        """
        if limits.chunking is None:
            return None
        most = max(budget - query, budget // 2) if limits.may_cut else budget - query
        if limits.document is not None:
            most = min(most, limits.document)
        if len(document.ids) <= most:
            return None
        return self._plain.split(
            document.reached, most, limits, lambda piece: len(self._plain.ids([piece])[0]) - most, field
        )


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """The number of tokens that each text of a pair keeps if both together may have `budget`: the longer text is cut.

    If each has more than half, each keeps half. Of an odd budget the longer text, or else the second, keeps one more.
    Source: `LongestFirst` of the `tokenizers` library, which transformers and sentence-transformers cut pairs by.
    """
    if first + second <= budget:
        return first, second
    shorter = min(first, second, budget // 2)
    return (budget - shorter, shorter) if first > second else (shorter, budget - shorter)


def _settled(first: ReadText, second: ReadText, budget: int) -> bool:
    """Whether the known tokens alone decide the share of each text.

    They do, but for the odd token of two texts that both have more than half: the longer text keeps it.
    """
    if budget % 2 == 0 or min(first.tokens, second.tokens) <= budget // 2:
        return True
    if first.tokens > second.tokens:
        return second.counted
    return first.counted

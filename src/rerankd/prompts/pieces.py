"""Prompts of decoders whose authors tokenise the pieces of a prompt apart and join their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from rerankd.core import InvalidRequest, PromptGroup, RerankRequest, Segment, Visuals
from rerankd.models.recipes.template import PieceTemplate
from rerankd.prompts.added_tokens import AddedTokens
from rerankd.prompts.chunks import Chunks, reduced_overlap, split
from rerankd.prompts.contents import read_text
from rerankd.prompts.limits import Limits, limit_too_low
from rerankd.prompts.sharing import SharedIds
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed


@dataclass(frozen=True, slots=True)
class Fixed:
    """The template's tokens around the texts of a request.

    head, between, tail: ids of the pieces before the query's, before the document's, and behind it
    asking: the text before the query in its piece; tokens: the number of its tokens
    """

    head: list[int]
    between: list[int]
    tail: list[int]
    asking: str
    tokens: int

    def budget(self, limits: Limits) -> int:
        """The tokens that the pieces of a query and a document may have in sum."""
        return limits.prompt - len(self.head) - len(self.between) - len(self.tail)

    def most(self, limits: Limits, authors_limit: int | None = None) -> int:
        """The tokens that the query's piece may have: three quarters of the budget of it, `between` and the document's
        piece.

        authors_limit: the authors' limit on that budget; None for no limit of theirs

        Source: `mxbai_rerank_v2.py` in mxbai-rerank, and `decoder_only/base.py` in FlagEmbedding.
        """
        together = self.budget(limits) + len(self.between)
        return (together if authors_limit is None else min(together, authors_limit)) * 3 // 4


class PiecePrompts:
    """A PromptBuilder. A prompt that does not fit loses the document's end, as the authors cut it."""

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        template: PieceTemplate,
        max_tokens: int,
        default_instruction: str | None,
        limited: bool = True,
        apart: bool = False,
    ) -> None:
        """max_tokens: in one prompt; default_instruction: None for the template's own.

        limited: whether `max_tokens` is the only limit; else the limit of the template's authors counts too
        apart: whether the shared prefix ends where documents begin, as `PromptGroup.tail` needs it
        """
        self.takes_instruction = template.takes_instruction
        self._tokenizer = tokenizer
        self._added = AddedTokens(tokenizer.tokenizer)
        self._template = template
        self._max_tokens = max_tokens
        self._own = None if limited else template.most
        self._default_instruction = default_instruction
        self._apart = apart
        self._before = template.before_document
        self._before_tokens = self._count(self._before)

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts; the prefix is the longest that all share. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens)
        query = self._read(read_text(request.query, "query"))
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        fixed = self._fixed(request.instruction or self._default_instruction)
        limits = replace(limits, prompt=min(limits.prompt, self._longest(fixed)))
        query_ids, query_cut = self._query_piece(query, fixed, request, limits)
        budget = fixed.budget(limits) - len(query_ids)
        budget = budget if self._own is None else min(budget, self._own)
        reached = [self._read(self._reach(text, limits)) for text in texts]
        pieces = self._pieces(self._before, reached)
        lengths = list(map(len, self._tokenizer.ids(reached))) if limits.document is not None else [0] * len(reached)
        if budget <= self._before_tokens and any(len(ids) > budget for ids in pieces):
            raise self._limit_too_low(fixed, limits)
        base = fixed.head + query_ids + fixed.between
        documents: list[list[int]] = []
        truncated: list[bool] = []
        chunks: list[Chunks | None] = []
        for i, text in enumerate(reached):
            field = f"documents[{i}]"
            fits = len(pieces[i]) <= budget and (limits.document is None or lengths[i] <= limits.document)
            parts = None if fits else self._split(texts[i], budget, limits, field)
            if parts:
                documents += self._pieces(self._before, [self._read(chunk.text) for chunk in parts.chunks])
                truncated.append(not parts.whole)
            else:
                text = self._within_own(field, text, lengths[i], limits.document, limits)
                ids = pieces[i] if text == reached[i] else self._pieces(self._before, [text])[0]
                tokens = len(base) + len(ids) + len(fixed.tail)
                long = limits.exceeded(field, "its prompt", tokens, limits.prompt)
                if long := long or limits.exceeded(field, "its part of the prompt", len(ids), budget):
                    ids = self._cut(field, self._before, text, ids, budget, limits)
                documents.append(ids)
                truncated.append(long or text != reached[i])
            chunks.append(parts)
        return replace(
            self._group(base, documents, fixed.tail),
            truncated=tuple(truncated),
            query_truncated=query_cut,
            chunks=tuple(parts.chunks if parts else () for parts in chunks) if any(chunks) else (),
            ignored=reduced_overlap(chunks),
        )

    def _group(self, base: list[int], documents: Sequence[list[int]], tail: list[int]) -> PromptGroup:
        """The prompts of `base`, a document and `tail` each, with the shared prefix laid once."""
        rest = [ids + tail for ids in documents]
        if self._apart:
            return PromptGroup(Segment(base), tuple(map(Segment, rest)), truncated=(), tail=len(tail))
        return SharedIds(base, [len(base)] * len(rest), rest).group()

    @property
    def max_tokens(self) -> int:
        """The most tokens of a prompt without an instruction."""
        return min(self._max_tokens, self._longest(self._fixed(self._default_instruction)))

    def _longest(self, fixed: Fixed) -> int:
        """The most tokens of a prompt, by the authors' limit where it counts."""
        authors_limit = None if self._own is None else self._template.longest(len(fixed.head), len(fixed.tail))
        return self._max_tokens if authors_limit is None else authors_limit

    def _fixed(self, instruction: str | None) -> Fixed:
        instruction = self._read(well_formed(instruction)) if instruction else None
        asking, ending = self._template.asking(instruction), self._template.ending(instruction)
        return Fixed(
            head=self._joined(self._template.head),
            between=self._joined((self._template.between,)),
            tail=self._joined(ending),
            asking=asking,
            tokens=self._count(asking),
        )

    def _query_piece(self, query: str, fixed: Fixed, request: RerankRequest, limits: Limits) -> tuple[list[int], bool]:
        """The ids of the query's piece, and whether anything of the query is cut."""
        text = self._reach(query, limits)
        text_tokens = self._count(text) if limits.query is not None else 0
        text = self._within_own("query", text, text_tokens, limits.query, limits)
        ids = self._pieces(fixed.asking, [text])[0]
        most = fixed.most(limits, self._own)
        if len(ids) <= most:
            return ids, text != query
        if most <= fixed.tokens:
            plain = self._fixed(self._default_instruction)
            if request.instruction and plain.most(limits, self._own) > plain.tokens:
                raise InvalidRequest(
                    "instruction",
                    f"takes too many of the {limits.prompt} tokens that are allowed in a prompt; shorten it",
                )
            raise self._limit_too_low(fixed, limits)
        limits.exceeded("query", "its part of the prompt", len(ids), most)
        return self._cut("query", fixed.asking, text, ids, most, limits), True

    def _cut(self, field: str, before: str, text: str, ids: list[int], budget: int, limits: Limits) -> list[int]:
        """The ids of a piece, of `before` and a text, cut to `budget`: the last ids go, or the first of the text."""
        if limits.side == "right":
            return ids[:budget]
        while len(ids) > budget and text:
            over = len(ids) - budget
            remainder = self._tokenizer.cut(text, self._count(text) - over, limits.side)
            text = limits.not_nothing(field, text, remainder, budget)
            ids = self._pieces(before, [text])[0]
        return ids

    def _within_own(self, field: str, text: str, tokens: int, limit: int | None, limits: Limits) -> str:
        """A text cut to its own limit."""
        if limit is None or not limits.exceeded(field, "it", tokens, limit):
            return text
        return limits.not_nothing(field, text, self._tokenizer.cut(text, limit, limits.side), limit)

    def _split(self, text: str, budget: int, limits: Limits, field: str) -> Chunks | None:
        """The chunks of a document that does not fit, where chunks are asked for."""
        if limits.chunking is None:
            return None
        text = self._tokenizer.reach(text, limits.reach, limits.side)
        most = budget if limits.document is None else limits.document

        def excess(piece: str) -> int:
            piece = self._read(piece)
            return max(len(self._pieces(self._before, [piece])[0]) - budget, self._count(piece) - most)

        least = min(budget - self._before_tokens, most)
        return split(text, self._tokenizer.offsets(text), least, limits, excess, field)

    def _limit_too_low(self, fixed: Fixed, limits: Limits) -> InvalidRequest:
        """The error where a query or a document keeps no token. The limit that the error names suffices."""
        between = len(fixed.between)
        least = max(ceil((fixed.tokens + 1) * 4 / 3), 4 * (between + self._before_tokens) + 1) - between
        needed = limits.prompt - fixed.budget(limits) + fixed.tokens + self._before_tokens
        return limit_too_low(limits.prompt, needed, least - fixed.tokens - self._before_tokens)

    def _reach(self, text: str, limits: Limits) -> str:
        """A text without the part that lies so far beyond the limit that it is certainly cut."""
        return self._tokenizer.reach(text, limits.prompt, limits.side) if limits.may_cut else text

    def _read(self, text: str) -> str:
        """A text without special tokens."""
        return self._added.escape(text)

    def _pieces(self, before: str, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.ids([before + text for text in texts])

    def _joined(self, pieces: Sequence[str]) -> list[int]:
        return [token for ids in self._tokenizer.ids(pieces) for token in ids]

    def _count(self, text: str) -> int:
        return len(self._tokenizer.ids([text])[0])

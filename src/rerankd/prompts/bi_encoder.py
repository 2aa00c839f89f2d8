"""Prompts of bi-encoders: the query and each document separately, as sentence-transformers encodes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd import work
from rerankd.core import InvalidRequest, PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks, reduced_overlap
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, limit_too_low
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed

INSTRUCTED = re.compile(r"(Instruct: )(.*)(\nQuery: ?)", re.DOTALL)
"""A prompt of queries that holds an instruction: that of Qwen3-Embedding, E5-instruct and gte-Qwen2-instruct."""


def with_instruction(prompt: str, instruction: str) -> str | None:
    """A prompt of queries with another instruction; None for a prompt without a place for one."""
    match = INSTRUCTED.fullmatch(prompt)
    return match[1] + instruction + match[3] if match else None


@dataclass(frozen=True, slots=True)
class Before:
    """The beginning of a text, and its number of tokens.

    marker: ids of tokens before `text` that are not tokenised from text
    """

    text: str
    tokens: int
    marker: list[int]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How texts of one kind are read.

    length: the most tokens of a text with its prompt and special tokens; None for the model's limit
    filler, fill: the id of the token that fills up a text to `fill` tokens
    unseen: whether no token attends to the fillers
    """

    prompt: str = ""
    marker: tuple[int, ...] = ()
    length: int | None = None
    filler: int = 0
    fill: int = 0
    unseen: bool = False


class BiEncoderPrompts:
    """A PromptBuilder. Every limit on a prompt holds for each text, since each is read alone."""

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, query: TextFormat, document: TextFormat) -> None:
        """query, document: how texts are read, as in `encode_query` and `encode_document`. A request's instruction
        replaces the instruction in a query's prompt of the form INSTRUCTED."""
        self._special = SpecialTokens(tokenizer.tokenizer, pair=False)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens
        self._side = tokenizer.side
        self._instructed = INSTRUCTED.fullmatch(query.prompt)
        self._query, self._document = query, document
        self._before_query, self._before_document = map(self._before, (query, document))

    @property
    def takes_instruction(self) -> bool:
        """See `PromptBuilder`."""
        return self._instructed is not None

    @property
    def default_instruction(self) -> str | None:
        """The instruction of the queries' prompt; None for a prompt without a place for one."""
        return self._instructed[2] if self._instructed else None

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The query as prefix, the documents as suffixes. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        before, budget = self._asking(request.instruction), self._budget(self._query, limits)
        self._expect_budget(limits, max(before.tokens, self._before_document.tokens), budget)
        query_text = self._plain.reach(read_text(request.query, "query"), limits.prompt, limits)
        (uncut,) = self._ids(before, [query_text])
        query = self._fitting("query", uncut, limits.query, before.tokens, _stays(request), budget, limits)
        prefix = self._around("query", query, self._query)
        group = self._documents(request, limits, self._before_document)
        return replace(group, prefix=prefix, query_truncated=len(query) < len(uncut))

    def alone(self, request: RerankRequest, prompt: str) -> PromptGroup:
        """The documents behind a prompt, and no query: an empty prefix. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        return self._documents(request, limits, self._before(TextFormat(prompt)))

    def _documents(self, request: RerankRequest, limits: Limits, before: Before) -> PromptGroup:
        """The documents as suffixes, without the prefix."""
        budget = self._budget(self._document, limits)
        self._expect_budget(limits, before.tokens, budget)
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        texts = [self._plain.reach(text, limits.reach, limits) for text in texts]
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        chunks: list[Chunks | None] = []
        for i, (text, document) in enumerate(zip(texts, self._ids(before, texts), strict=True)):
            field = f"documents[{i}]"
            if split := self._split(text, document, budget, limits, field):
                pieces = self._ids(before, [chunk.text for chunk in split.chunks])
                truncated.append(not split.whole)
            else:
                limit = limits.document
                pieces = [self._fitting(field, document, limit, before.tokens, _stays(request), budget, limits)]
                truncated.append(len(pieces[0]) < len(document))
            suffixes += (self._around(field, piece, self._document) for piece in pieces)
            chunks.append(split)
        return PromptGroup(
            prefix=Segment([]),
            suffixes=tuple(suffixes),
            truncated=tuple(truncated),
            chunks=tuple(split.chunks if split else () for split in chunks) if any(chunks) else (),
            ignored=reduced_overlap(chunks),
        )

    def _expect_budget(self, limits: Limits, before: int, budget: int) -> None:
        """Refuse limits that leave no tokens for a text: an embedding of the prompt alone would mean nothing.

        before: tokens that stand before the text
        """
        if budget <= before:
            raise limit_too_low(limits.prompt, self._special.count + before, 1)

    def _budget(self, form: TextFormat, limits: Limits) -> int:
        """Tokens that a text may have with its prompt."""
        return min(limits.prompt, form.length or limits.prompt) - self._special.count

    def _before(self, form: TextFormat) -> Before:
        tokens = len(form.marker) + len(self._plain.ids([form.prompt])[0])
        return Before(form.prompt, tokens, list(form.marker))

    def _ids(self, before: Before, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts with their beginnings."""
        return [before.marker + ids for ids in self._plain.ids([before.text + text for text in texts])]

    def _asking(self, instruction: str | None) -> Before:
        """The beginning of the query in a request with this instruction."""
        prompt = with_instruction(self._before_query.text, well_formed(instruction)) if instruction else None
        return self._before_query if prompt is None else self._before(replace(self._query, prompt=prompt))

    def _around(self, field: str, ids: list[int], form: TextFormat) -> Segment:
        """A text with its special tokens. InvalidRequest for a text without any token, which has no embedding."""
        segment = self._special.around(ids)
        if not len(segment):
            work.refuse(InvalidRequest(field, "is empty, and this model's tokenizer puts no token around a text"))
        fill = max(form.fill - len(segment), 0)
        if not fill:
            return segment
        work.count("tokens", fill)
        types = segment.token_types + [0] * fill if segment.token_types else []
        ids = segment.token_ids + [form.filler] * fill
        return Segment(ids, types, unseen=fill if form.unseen else 0)

    def _fitting(
        self, field: str, ids: list[int], text_limit: int | None, prompt: int, stays: bool, budget: int, limits: Limits
    ) -> list[int]:
        """A text's ids with its prompt, cut to the text's own limit, which does not count the prompt, and to `budget`.

        stays: whether the prompt stays when the beginning of all is cut
        """
        ids = limits.cut(field, "it", ids, None if text_limit is None else text_limit + prompt, head=prompt)
        return limits.cut(field, "it", ids, budget, self._special.count, prompt if stays else 0)

    def _split(self, text: str, ids: list[int], budget: int, limits: Limits, field: str) -> Chunks | None:
        """A document's chunks, where they are asked for and it does not fit."""
        if limits.document is not None:
            budget = min(budget, limits.document + self._before_document.tokens)
        if limits.chunking is None or len(ids) <= budget:
            return None
        return self._plain.split(
            text,
            budget - self._before_document.tokens,
            limits,
            lambda piece: len(self._ids(self._before_document, [piece])[0]) - budget,
            field,
        )


def _stays(request: RerankRequest) -> bool:
    """Whether a prompt stays when the beginning of a text is cut.

    A request that cuts beginnings means the beginnings of its texts. sentence-transformers, which knows only the
    checkpoint's side, cuts the prompt as a part of the text.
    """
    return request.truncation.side is not None

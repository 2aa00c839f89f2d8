"""Prompts that hold several documents each.

Source: `rerank` and `_truncate_texts` in `modeling.py` of jinaai/jina-reranker-v3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from rerankd.core import Chunking, InvalidRequest, PromptGroup, RerankRequest, Segment, Visuals, Windows
from rerankd.models.recipes.template import ListTemplate
from rerankd.prompts.added_tokens import AddedTokens
from rerankd.prompts.contents import read_text
from rerankd.prompts.limits import Limits
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed


class ListwisePrompts:
    """A PromptBuilder. A request's documents stay in order, and are split into windows by the authors' rule.

    Each text is cut to its own limit, as the authors cut it. A document is cut further where the prompt of this
    document alone is over the limit.
    """

    takes_instruction = True

    def __init__(
        self, tokenizer: LoadedTokenizer, template: ListTemplate, max_tokens: int, default_instruction: str | None
    ) -> None:
        """max_tokens: in one prompt. Raises ModelError where the tokenizer lacks the template's marks."""
        self._tokenizer = tokenizer
        self._template = template
        self._max_tokens = max_tokens
        self._default_instruction = default_instruction
        self._added = AddedTokens(tokenizer.tokenizer)
        self._document_mark = tokenizer.token_id(template.document_mark)
        self._query_mark = tokenizer.token_id(template.query_mark)

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's windows as suffixes without a prefix. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._tokenizer.side)
        instruction = request.instruction or self._default_instruction
        instruction = self._read(well_formed(instruction)) if instruction else None
        uncut_query = self._read(read_text(request.query, "query"))
        uncut_documents = [
            self._read(read_text(document, f"documents[{i}]")) for i, document in enumerate(request.documents)
        ]
        fields = [f"documents[{i}]" for i in range(len(uncut_documents))]
        longest = limits.document or self._template.document_tokens
        ((query, query_tokens),) = self._fitting(
            ["query"], [uncut_query], limits.query or self._template.query_tokens, limits
        )
        fitting = self._fitting(fields, uncut_documents, longest, limits)
        documents = [text for text, _ in fitting]
        segments: list[Segment] = []
        sizes: list[int] = []
        # The query stands in each prompt twice.
        for window in self._windows([n for _, n in fitting], limits.prompt - 2 * query_tokens, longest):
            for part, ids in self._written(instruction, query, documents, window, limits):
                segments.append(Segment(ids))
                sizes.append(len(part))
        return PromptGroup(
            prefix=Segment([]),
            suffixes=tuple(segments),
            truncated=tuple(text != uncut for text, uncut in zip(documents, uncut_documents, strict=True)),
            query_truncated=query != uncut_query,
            ignored=_ignored_chunking(request.chunking),
            windows=Windows(tuple(sizes), self._template.vector),
        )

    def _windows(self, lengths: Sequence[int], budget: int, longest: int) -> Iterator[range]:
        """The documents of each window. A window is full at `documents`, or where one more document may not fit."""
        start, remaining = 0, budget
        for i, length in enumerate(lengths):
            remaining -= length
            if i + 1 - start == self._template.documents or remaining <= longest:
                yield range(start, i + 1)
                start, remaining = i + 1, budget
        if start < len(lengths):
            yield range(start, len(lengths))

    def _written(
        self, instruction: str | None, query: str, documents: list[str], window: range, limits: Limits
    ) -> list[tuple[range, list[int]]]:
        """The prompt of a window, or the prompts of its halves where the template's tokens make the prompt too long.

        A document that does not fit alone is cut, in `documents`.
        """
        ids = self._ids(instruction, query, documents[window.start : window.stop])
        if len(ids) <= limits.prompt:
            return [(window, ids)]
        if len(window) > 1:
            middle = window.start + len(window) // 2
            parts = (range(window.start, middle), range(middle, window.stop))
            return [prompt for part in parts for prompt in self._written(instruction, query, documents, part, limits)]
        place, field = window.start, f"documents[{window.start}]"
        limits.exceeded(field, "its prompt", len(ids), limits.prompt)
        while (over := len(ids) - limits.prompt) > 0:
            document_ids = self._tokenizer.ids([documents[place]])[0]
            if len(document_ids) <= over:
                fixed = len(ids) - len(document_ids)
                raise InvalidRequest(
                    "truncation.max_tokens",
                    f"{limits.prompt} tokens are allowed, and the prompt of a document takes {fixed} without the "
                    f"document; allow at least {fixed + 1}, or shorten the query",
                )
            documents[place] = self._text(limits.side_of(document_ids, len(document_ids) - over))
            ids = self._ids(instruction, query, [documents[place]])
        return [(window, ids)]

    def _ids(self, instruction: str | None, query: str, documents: Sequence[str]) -> list[int]:
        """The tokens of a prompt. No token reaches over a mark, so the pieces between marks are tokenised apart."""
        pieces = self._tokenizer.ids(self._template.pieces(instruction, query, documents))
        marks = [[self._document_mark]] * len(documents) + [[self._query_mark], []]
        return list(chain.from_iterable(ids + mark for ids, mark in zip(pieces, marks, strict=True)))

    def _fitting(
        self, fields: Sequence[str], texts: Sequence[str], limit: int, limits: Limits
    ) -> list[tuple[str, int]]:
        """Each text, cut to `limit` tokens, and its tokens by itself. Raises InvalidRequest."""
        if limits.may_cut:
            texts = [self._tokenizer.reach(text, limit, limits.side) for text in texts]
        fitting = []
        for field, text, ids in zip(fields, texts, self._tokenizer.ids(texts), strict=True):
            cut_ids = limits.cut(field, "it", ids, limit)
            fitting.append((text if len(cut_ids) == len(ids) else self._text(cut_ids), len(cut_ids)))
        return fitting

    def _text(self, ids: list[int]) -> str:
        """The text of some tokens; a part of a character becomes U+FFFD, as with the authors."""
        return str(self._tokenizer.tokenizer.decode(ids, skip_special_tokens=False))

    def _read(self, text: str) -> str:
        """A text without special tokens; marks are removed, as the authors do."""
        for mark in (self._template.query_mark, self._template.document_mark):
            text = text.replace(mark, "")
        return self._added.escape(text)


def _ignored_chunking(chunking: Chunking | None) -> tuple[str, ...]:
    """The request's fields for chunks, which have no effect here."""
    if chunking is None:
        return ()
    options = (("max_chunks_per_doc", chunking.max_chunks_per_doc), ("overlap_tokens", chunking.overlap_tokens))
    return tuple(f"chunking.{name}" for name, value in options if value) or ("chunking",)

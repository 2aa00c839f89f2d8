"""Prompts of cross-encoders: (query, document) in the tokenizer's own pair template."""

from __future__ import annotations

from rerankd.core import Chunk, PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.tokenizer import LoadedTokenizer


class CrossEncoderPrompts:
    """A PromptBuilder. Special tokens are never cut."""

    takes_instruction = False

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int) -> None:
        self._special = SpecialTokens(tokenizer.tokenizer, pair=True)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's pairs, with an empty prefix. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens)
        room = limits.prompt - self._special.count
        if room < 0:
            raise no_room(limits.prompt, self._special.count)
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        texts = [self._plain.reach(text, limits) for text in (read_text(request.query, "query"), *texts)]
        query, *documents = self._plain.ids(texts)
        whole = len(query)
        query = limits.cut("query", "it", query, limits.query)
        query = limits.cut("query", "the prompt without any document", query, room, self._special.count)
        taken = len(query) + self._special.count
        room = limits.prompt - taken
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        chunks: list[tuple[Chunk, ...]] = []
        for i, document in enumerate(documents):
            field = f"documents[{i}]"
            if split := self._split(texts[i + 1], document, room, limits, field):
                pieces = self._plain.ids([chunk.text for chunk in split.chunks])
                truncated.append(not split.whole)
            else:
                kept = limits.cut(field, "it", document, limits.document)
                pieces = [limits.cut(field, "its prompt", kept, room, taken)]
                truncated.append(len(pieces[0]) < len(document))
            suffixes += (self._special.around(query, piece) for piece in pieces)
            chunks.append(split.chunks if split else ())
        return PromptGroup(
            prefix=Segment([]),
            suffixes=tuple(suffixes),
            truncated=tuple(truncated),
            query_truncated=len(query) < whole,
            chunks=tuple(chunks) if any(chunks) else (),
        )

    def _split(self, text: str, ids: list[int], room: int, limits: Limits, field: str) -> Chunks | None:
        """A document's chunks, where they are asked for and it does not fit."""
        if limits.document is not None:
            room = min(room, limits.document)
        if limits.chunking is None or len(ids) <= room:
            return None
        return self._plain.split(text, room, limits, lambda piece: len(self._plain.ids([piece])[0]) - room, field)

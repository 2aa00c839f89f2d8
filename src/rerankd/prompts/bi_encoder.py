"""Prompts of bi-encoders: the query and each document by themselves, as sentence-transformers encodes them."""

from __future__ import annotations

from rerankd.core import PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks, reduced_overlap
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.tokenizer import LoadedTokenizer


class BiEncoderPrompts:
    """A PromptBuilder. Every limit on a prompt holds for each text, since each is read alone."""

    takes_instruction = False

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, query_prompt: str, document_prompt: str) -> None:
        """query_prompt, document_prompt: what is put before each text, as in `encode_query` and `encode_document`."""
        self._special = SpecialTokens(tokenizer.tokenizer, pair=False)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens
        self._side = tokenizer.side
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt
        self._query_prompt_tokens, self._document_prompt_tokens = map(
            len, self._plain.ids([query_prompt, document_prompt])
        )

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The query as prefix, the documents as suffixes. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        room = limits.prompt - self._special.count
        least = max(self._query_prompt_tokens, self._document_prompt_tokens)
        if room <= least:  # an embedding of the prompt alone would mean nothing
            raise no_room(limits.prompt, self._special.count + least, 1)
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        query_text = self._plain.reach(read_text(request.query, "query"), limits.prompt, limits)
        texts = [self._plain.reach(text, limits.reach, limits) for text in texts]
        # A request that cuts beginnings means those of its texts. sentence-transformers knows the checkpoint's side
        # alone, and cuts the prompt with the text that follows.
        stays = request.truncation.side is not None
        whole, *documents = self._plain.ids(
            [self._query_prompt + query_text, *(self._document_prompt + text for text in texts)]
        )
        query = self._fitting("query", whole, limits.query, self._query_prompt_tokens, stays, room, limits)
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        chunks: list[Chunks | None] = []
        for i, (text, document) in enumerate(zip(texts, documents, strict=True)):
            field = f"documents[{i}]"
            if split := self._split(text, document, room, limits, field):
                pieces = self._plain.ids([self._document_prompt + chunk.text for chunk in split.chunks])
                truncated.append(not split.whole)
            else:
                head = self._document_prompt_tokens
                pieces = [self._fitting(field, document, limits.document, head, stays, room, limits)]
                truncated.append(len(pieces[0]) < len(document))
            suffixes += map(self._special.around, pieces)
            chunks.append(split)
        return PromptGroup(
            prefix=self._special.around(query),
            suffixes=tuple(suffixes),
            truncated=tuple(truncated),
            query_truncated=len(query) < len(whole),
            chunks=tuple(split.chunks if split else () for split in chunks) if any(chunks) else (),
            ignored=reduced_overlap(chunks),
        )

    def _fitting(
        self, field: str, ids: list[int], own: int | None, prompt: int, stays: bool, room: int, limits: Limits
    ) -> list[int]:
        """A text's ids, its prompt among them, cut to its own limit, which does not count that, and to `room`.

        stays: whether the prompt stays when the beginning of all is cut
        """
        ids = limits.cut(field, "it", ids, None if own is None else own + prompt, head=prompt)
        return limits.cut(field, "it", ids, room, self._special.count, prompt if stays else 0)

    def _split(self, text: str, ids: list[int], room: int, limits: Limits, field: str) -> Chunks | None:
        """A document's chunks, where they are asked for and it does not fit."""
        if limits.document is not None:
            room = min(room, limits.document + self._document_prompt_tokens)
        if limits.chunking is None or len(ids) <= room:
            return None
        return self._plain.split(
            text,
            room - self._document_prompt_tokens,
            limits,
            lambda piece: len(self._plain.ids([self._document_prompt + piece])[0]) - room,
            field,
        )

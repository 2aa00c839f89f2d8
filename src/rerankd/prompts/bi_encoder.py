"""Prompts of bi-encoders: the query and each document by themselves, as sentence-transformers encodes them."""

from __future__ import annotations

from rerankd.core import PromptGroup, RerankRequest, Visuals
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
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt
        self._query_prompt_tokens, self._document_prompt_tokens = map(
            len, self._plain.ids([query_prompt, document_prompt])
        )

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The query as prefix, the documents as suffixes. See `PromptBuilder.build`."""
        limits = Limits.of(request.truncation, self._max_tokens)
        room = limits.prompt - self._special.count
        least = max(self._query_prompt_tokens, self._document_prompt_tokens)
        if room < least:
            raise no_room(limits.prompt, self._special.count + least)
        texts = [
            self._query_prompt + read_text(request.query, "query"),
            *(self._document_prompt + read_text(d, f"documents[{i}]") for i, d in enumerate(request.documents)),
        ]
        whole = self._plain.ids(texts, limits)
        kept = []
        for i, ids in enumerate(whole):
            field = f"documents[{i - 1}]" if i else "query"
            own, prompt = (
                (limits.document, self._document_prompt_tokens) if i else (limits.query, self._query_prompt_tokens)
            )
            ids = limits.cut(field, "it", ids, None if own is None else own + prompt)
            kept.append(limits.cut(field, "it", ids, room, self._special.count))
        query, *documents = map(self._special.around, kept)
        query_cut, *cut = (len(short) < len(long) for short, long in zip(kept, whole, strict=True))
        return PromptGroup(query, tuple(documents), tuple(cut), query_cut)

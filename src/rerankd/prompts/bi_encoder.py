"""Prompts of bi-encoders: the query and each document by themselves, as sentence-transformers encodes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rerankd import work
from rerankd.core import InvalidRequest, PromptGroup, RerankRequest, Segment, Visuals
from rerankd.prompts.chunks import Chunks, reduced_overlap
from rerankd.prompts.contents import read_text
from rerankd.prompts.encoders import PlainTexts, SpecialTokens
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed

INSTRUCTED = re.compile(r"(Instruct: )(.*)(\nQuery: ?)", re.DOTALL)
"""A prompt of queries that holds an instruction: that of Qwen3-Embedding, E5-instruct and gte-Qwen2-instruct."""


def with_instruction(prompt: str, instruction: str) -> str | None:
    """A prompt of queries with another instruction; None for one that has no place for any."""
    found = INSTRUCTED.fullmatch(prompt)
    return found[1] + instruction + found[3] if found else None


@dataclass(frozen=True, slots=True)
class Before:
    """What stands before a text, and how many tokens it is."""

    text: str
    tokens: int


class BiEncoderPrompts:
    """A PromptBuilder. Every limit on a prompt holds for each text, since each is read alone."""

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, query_prompt: str, document_prompt: str) -> None:
        """query_prompt, document_prompt: what is put before each text, as in `encode_query` and `encode_document`; an
        instruction takes the place of the one that a `query_prompt` of the form of INSTRUCTED holds."""
        self._special = SpecialTokens(tokenizer.tokenizer, pair=False)
        self._plain = PlainTexts(tokenizer)
        self._max_tokens = max_tokens
        self._side = tokenizer.side
        self._instructed = INSTRUCTED.fullmatch(query_prompt)
        self._before_query, self._before_document = map(self._before, (query_prompt, document_prompt))

    @property
    def takes_instruction(self) -> bool:
        """See `PromptBuilder`."""
        return self._instructed is not None

    @property
    def default_instruction(self) -> str | None:
        """The instruction of the queries' prompt; None where that has no place for one."""
        return self._instructed[2] if self._instructed else None

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The query as prefix, the documents as suffixes. See `PromptBuilder.build`."""
        limits = Limits.of(request, self._max_tokens, self._side)
        before_query, before_document = self._asking(request.instruction), self._before_document
        room = limits.prompt - self._special.count
        least = max(before_query.tokens, before_document.tokens)
        if room <= least:  # an embedding of the prompt alone would mean nothing
            raise no_room(limits.prompt, self._special.count + least, 1)
        texts = [read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        query_text = self._plain.reach(read_text(request.query, "query"), limits.prompt, limits)
        texts = [self._plain.reach(text, limits.reach, limits) for text in texts]
        # A request that cuts beginnings means those of its texts. sentence-transformers knows the checkpoint's side
        # alone, and cuts the prompt with the text that follows.
        stays = request.truncation.side is not None
        whole, *documents = self._plain.ids(
            [before_query.text + query_text, *(before_document.text + text for text in texts)]
        )
        query = self._fitting("query", whole, limits.query, before_query.tokens, stays, room, limits)
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        chunks: list[Chunks | None] = []
        for i, (text, document) in enumerate(zip(texts, documents, strict=True)):
            field = f"documents[{i}]"
            if split := self._split(text, document, room, limits, field):
                pieces = self._plain.ids([before_document.text + chunk.text for chunk in split.chunks])
                truncated.append(not split.whole)
            else:
                pieces = [self._fitting(field, document, limits.document, before_document.tokens, stays, room, limits)]
                truncated.append(len(pieces[0]) < len(document))
            suffixes += (self._around(field, piece) for piece in pieces)
            chunks.append(split)
        return PromptGroup(
            prefix=self._around("query", query),
            suffixes=tuple(suffixes),
            truncated=tuple(truncated),
            query_truncated=len(query) < len(whole),
            chunks=tuple(split.chunks if split else () for split in chunks) if any(chunks) else (),
            ignored=reduced_overlap(chunks),
        )

    def _before(self, text: str) -> Before:
        return Before(text, len(self._plain.ids([text])[0]))

    def _asking(self, instruction: str | None) -> Before:
        """What stands before the query of a request with this instruction."""
        prompt = with_instruction(self._before_query.text, well_formed(instruction)) if instruction else None
        return self._before_query if prompt is None else self._before(prompt)

    def _around(self, field: str, ids: list[int]) -> Segment:
        """A text with its special tokens. InvalidRequest for one without any token, which has no embedding."""
        segment = self._special.around(ids)
        if not len(segment):
            work.refuse(InvalidRequest(field, "is empty, and this model's tokenizer puts no token around a text"))
        return segment

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
            room = min(room, limits.document + self._before_document.tokens)
        if limits.chunking is None or len(ids) <= room:
            return None
        return self._plain.split(
            text,
            room - self._before_document.tokens,
            limits,
            lambda piece: len(self._plain.ids([self._before_document.text + piece])[0]) - room,
            field,
        )

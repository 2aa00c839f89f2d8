"""Prompts that a client has written whole, for the probabilities of the next token."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TypeAlias

from rerankd.core import Content, InvalidRequest, PromptGroup, RerankRequest, Text, Tokens, Visuals
from rerankd.prompts.limits import too_many_characters
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import Around, SharedIds
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed

Piece: TypeAlias = str | tuple[int, ...]
"""A text, or token ids."""


class VerbatimPrompts:
    """A PromptBuilder. Tokenises as transformers does: a special token's string in a text is that token."""

    takes_instruction = False

    def __init__(
        self, tokenizer: LoadedTokenizer, max_tokens: int, max_characters: int, vocabulary: int, visual: Set[int]
    ) -> None:
        """max_tokens, max_characters: in one prompt; vocabulary: how many token ids there are

        visual: the ids of placeholders of images and videos, in a model that takes these
        """
        self._tokenizer = tokenizer
        self._seams = Seams(tokenizer.tokenizer)
        self._max_tokens = max_tokens
        self._max_characters = max_characters
        self._vocabulary = vocabulary
        self._visual = visual

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The prompts of a request with labels; the prefix is the longest that all share.

        Raises InvalidRequest for prompts that are empty, too long or hold images, and for ids that are no tokens.
        """
        assert request.labels is not None
        if not request.labels.token_ids:
            raise InvalidRequest("labels", "must hold at least one token id")
        self._check_ids("labels", request.labels.token_ids)
        query = _piece(request.query, "query") if request.query else None
        pieces = [_piece(document, f"documents[{i}]") for i, document in enumerate(request.documents)]
        for field, text in (("query", query), *((f"documents[{i}]", piece) for i, piece in enumerate(pieces))):
            if isinstance(text, str) and len(text) > self._max_characters:
                raise too_many_characters(field, len(text), self._max_characters)
        ids = self._ids(query, pieces, request.labels.query_last)
        if query:
            # In front it stands in the base, behind at the end of each prompt.
            self._check("query", ids.base)
        for i, rest in enumerate(ids.rest):
            field = f"documents[{i}]"
            if not ids.length(i):
                raise InvalidRequest(field, "makes an empty prompt; give at least one token")
            self._check(field, rest)
            if ids.length(i) > self._max_tokens:
                raise InvalidRequest(
                    field, f"makes a prompt of {ids.length(i)} tokens, and {self._max_tokens} are allowed; shorten it"
                )
        # The place of the query makes no difference from here on.
        labels = replace(request.labels, query_last=False)
        return replace(ids.group(), truncated=(False,) * len(ids.rest), labels=labels)

    def _ids(self, query: Piece | None, documents: Sequence[Piece], query_last: bool) -> SharedIds:
        """The ids of the whole prompts, with the shared ids once."""
        for i, document in enumerate(documents):
            if query is not None and isinstance(document, str) != isinstance(query, str):
                kind = "a text" if isinstance(query, str) else "token ids"
                raise InvalidRequest(f"documents[{i}]", f"must be {kind}, as the query is")
        if isinstance(query, tuple):
            document_ids = [list(document) for document in documents if not isinstance(document, str)]
            if query_last:
                return SharedIds([], [0] * len(document_ids), [[*ids, *query] for ids in document_ids])
            return SharedIds(list(query), [len(query)] * len(document_ids), document_ids)
        before, after = ("", query or "") if query_last else (query or "", "")
        around = Around(self._encode, self._seams, well_formed(before), well_formed(after))
        texts = around.ids(
            well_formed(before + document + after) for document in documents if isinstance(document, str)
        )
        if len(texts.rest) == len(documents):
            return texts
        encoded = iter(range(len(texts.rest)))
        mixed = [texts.prompt(next(encoded)) if isinstance(document, str) else list(document) for document in documents]
        return SharedIds([], [0] * len(mixed), mixed)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.ids(texts, special=True)

    def _check(self, field: str, ids: Sequence[int]) -> None:
        self._check_ids(field, ids)
        if not self._visual.isdisjoint(ids):
            raise InvalidRequest(field, "has a token that stands for an image or a video; this request reads only text")

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        for token in (min(ids), max(ids)) if ids else ():
            if not 0 <= token < self._vocabulary:
                raise InvalidRequest(
                    field, f"{token} is no token id of this model, which has 0 to {self._vocabulary - 1}"
                )


def _piece(content: Content, field: str) -> Piece:
    match content:
        case (Text(text),):
            return text
        case (Tokens(ids),):
            return ids
    raise InvalidRequest(field, "must be one text, or token ids, beside labels")

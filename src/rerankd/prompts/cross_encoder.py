"""Prompts of cross-encoders: (query, document) in the tokenizer's own pair template."""

from __future__ import annotations

from rerankd.core import PromptGroup, RerankRequest, Segment, Visuals
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
        limits = Limits.of(request.truncation, self._max_tokens)
        room = limits.prompt - self._special.count
        if room < 0:
            raise no_room(limits.prompt, self._special.count)
        query, *documents = self._plain.ids(
            [
                read_text(request.query, "query"),
                *(read_text(document, f"documents[{i}]") for i, document in enumerate(request.documents)),
            ],
            limits,
        )
        whole = len(query)
        query = limits.cut("query", "it", query, limits.query)
        query = limits.cut("query", "the prompt without any document", query, room, self._special.count)
        taken = len(query) + self._special.count
        suffixes: list[Segment] = []
        truncated: list[bool] = []
        for i, document in enumerate(documents):
            kept = limits.cut(f"documents[{i}]", "it", document, limits.document)
            kept = limits.cut(f"documents[{i}]", "its prompt", kept, limits.prompt - taken, taken)
            suffixes.append(self._special.around(query, kept))
            truncated.append(len(kept) < len(document))
        return PromptGroup(Segment([]), tuple(suffixes), tuple(truncated), len(query) < whole)

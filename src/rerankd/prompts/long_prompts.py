"""Cutting the prompts of a decoder that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rerankd import work
from rerankd.core import InvalidRequest
from rerankd.prompts.cutting import PromptCutter
from rerankd.prompts.fitting import Fitting
from rerankd.prompts.frame import Frame, Frames
from rerankd.prompts.limits import Limits
from rerankd.prompts.sharing import SharedIds
from rerankd.prompts.texts import Texts
from rerankd.prompts.tokenizer import LoadedTokenizer
from rerankd.prompts.visuals import SeenTexts


class LongPrompts:
    """Cuts prompts at the end as the authors of Qwen's rerankers do, or at the beginning of the document."""

    def __init__(self, tokenizer: LoadedTokenizer, seen: SeenTexts, frames: Frames, fitting: Fitting) -> None:
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._seen = seen
        self._frames = frames
        self._fitting = fitting

    def cut(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """Cut the prompts that are too long, by index, in `ids`. Returns whether the query was cut in any of them."""
        if not long:
            return False
        return (self._cut_ends if limits.side == "right" else self._cut_beginnings)(frame, texts, ids, long, limits)

    def _cut_ends(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """As in the authors' scripts, the text before a document and the document are tokenised as one and cut.

        The template's tail is tokenised by itself and appended.
        """
        documents, fields = [texts.documents[i] for i in long], [texts.fields[i] for i in long]
        for i, document, field in zip(long, documents, fields, strict=True):
            if not frame.is_cuttable(document, field):
                work.refuse(_uncuttable(field, ids.length(i), limits))
        heads = frame.heads(documents, fields)
        cutter = PromptCutter(heads.base, self._special)
        budget = limits.prompt - len(frame.tail)
        head_tokens = self._plain_tokens(frame.head)
        query_cut = False
        for place, i in enumerate(long):
            if (plain := cutter.plain_budget(heads, place, budget)) < head_tokens:
                # The document's images and videos, which stay, leave too little to the query before them.
                shown = self._seen.cut(texts.query, 0, limits.side)
                needed = self._plain_tokens(self._frames.of(replace(texts, query=shown)).head) + (shown != texts.query)
                if plain < needed:
                    work.refuse(_too_much_shown(fields[place], limits.prompt - plain + needed, limits))
                    continue
                query_cut = True
            ids.kept[i], rest = cutter.cut(heads, place, budget)
            ids.rest[i] = rest + frame.tail
        return query_cut

    def _cut_beginnings(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """The rest of a document that loses its beginning is tokenised with the text around the document.

        Where its images and videos alone leave too few tokens, the query loses its beginning in this prompt.
        """
        query_cut = False
        for i in long:
            field, document = texts.fields[i], texts.documents[i]

            def over(text: str, field: str = field) -> int:
                return frame.length(text, field) - limits.prompt

            remainder = self._fitting.shortened(document, over, limits)
            prompt_ids = frame.prompts([remainder], [field])
            if prompt_ids.length(0) <= limits.prompt:
                limits.not_nothing(field, document, remainder, limits.prompt - frame.tokens)
                ids.kept[i], ids.rest[i] = prompt_ids.kept[0], prompt_ids.rest[0]
                continue
            if not remainder:
                work.refuse(_uncuttable(field, prompt_ids.length(0), limits))
                continue

            def excess(query: str, remainder: str = remainder, field: str = field) -> int:
                return self._frames.of(replace(texts, query=query)).length(remainder, field) - limits.prompt

            query = self._fitting.shortened(texts.query, excess, limits)
            if query == self._seen.cut(query, 0, limits.side):
                work.refuse(_too_much_shown(field, prompt_ids.length(0), limits))
                continue
            prompt_ids = self._frames.of(replace(texts, query=query)).prompts([remainder], [field])
            ids.put(i, prompt_ids.prompt(0))
            query_cut = True
        return query_cut

    def _plain_tokens(self, ids: Sequence[int]) -> int:
        return sum(token not in self._special for token in ids)


def _uncuttable(field: str, tokens: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"its prompt takes {tokens} tokens and {limits.prompt} are allowed, and it cannot be cut, because what the "
        "chat template writes around it depends on it; shorten it",
    )


def _too_much_shown(field: str, tokens: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"its images and videos leave no tokens for the query: {tokens} tokens are needed, and {limits.prompt} are "
        "allowed; send fewer or smaller ones (max_pixels, max_frames), or raise the limit",
    )

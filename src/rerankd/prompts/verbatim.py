"""Prompts that a client has written whole, for the probabilities of what may come next."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from rerankd.core import InvalidRequest, LabelRequest, PromptGroup
from rerankd.prompts.limits import too_many_characters
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import Around, SharedIds
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed


class VerbatimPrompts:
    """Tokenises as transformers does: a special token's string in a text is that token."""

    def __init__(
        self, tokenizer: LoadedTokenizer, max_tokens: int, max_characters: int, vocabulary: int, visual: Set[int]
    ) -> None:
        """max_tokens, max_characters: in one prompt; vocabulary: how many token ids there are

        visual: those that stand for images and videos in a model that sees
        """
        self._tokenizer = tokenizer
        self._seams = Seams(tokenizer.tokenizer)
        self._max_tokens = max_tokens
        self._max_characters = max_characters
        self._vocabulary = vocabulary
        self._visual = visual

    def build(self, request: LabelRequest) -> PromptGroup:
        """The request's prompts; the prefix is the longest that all share.

        Raises InvalidRequest for prompts that are empty, too long or hold pictures, and for ids that are no tokens.
        """
        if not request.labels.token_ids:
            raise InvalidRequest("labels", "must hold at least one token id")
        self._check_ids("labels", request.labels.token_ids)
        for field, text in (("shared", request.shared), *((f"prompts[{i}]", p) for i, p in enumerate(request.prompts))):
            if isinstance(text, str) and len(text) > self._max_characters:
                raise too_many_characters(field, len(text), self._max_characters)
        ids = self._ids(request)
        if request.shared:
            # In front it stands in the base, behind at the end of each prompt.
            self._check("shared", ids.base)
        for i, rest in enumerate(ids.rest):
            if not ids.length(i):
                raise InvalidRequest(f"prompts[{i}]", "makes an empty prompt; give at least one token")
            self._check(f"prompts[{i}]", rest)
            if ids.length(i) > self._max_tokens:
                raise InvalidRequest(
                    f"prompts[{i}]",
                    f"makes a prompt of {ids.length(i)} tokens, and {self._max_tokens} are allowed; shorten it",
                )
        return replace(ids.group(), truncated=(False,) * len(ids.rest), labels=request.labels)

    def _ids(self, request: LabelRequest) -> SharedIds:
        """The ids of the whole prompts, those of what they share once."""
        shared, prompts = request.shared, request.prompts
        for i, prompt in enumerate(prompts):
            if shared is not None and isinstance(prompt, str) != isinstance(shared, str):
                kind = "a text" if isinstance(shared, str) else "a list of token ids"
                raise InvalidRequest(f"prompts[{i}]", f"must be {kind}, as the part is that all prompts share")
        if isinstance(shared, tuple):
            own = [list(prompt) for prompt in prompts if not isinstance(prompt, str)]
            if request.shared_last:
                return SharedIds([], [0] * len(own), [[*ids, *shared] for ids in own])
            return SharedIds(list(shared), [len(shared)] * len(own), own)
        before, after = ("", shared or "") if request.shared_last else (shared or "", "")
        around = Around(self._encode, self._seams, well_formed(before), well_formed(after))
        texts = around.ids(well_formed(before + prompt + after) for prompt in prompts if isinstance(prompt, str))
        if len(texts.rest) == len(prompts):
            return texts
        encoded = iter(range(len(texts.rest)))
        mixed = [texts.prompt(next(encoded)) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        return SharedIds([], [0] * len(mixed), mixed)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.ids(texts, special=True)

    def _check(self, field: str, ids: Sequence[int]) -> None:
        self._check_ids(field, ids)
        if not self._visual.isdisjoint(ids):
            raise InvalidRequest(field, "holds a token that stands for an image or a video; only text is read here")

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        for token in (min(ids), max(ids)) if ids else ():
            if not 0 <= token < self._vocabulary:
                raise InvalidRequest(
                    field, f"{token} is no token id of this model, which has 0 to {self._vocabulary - 1}"
                )

"""Prompts that a client has written whole, for the probabilities of what may come next."""

from __future__ import annotations

from collections.abc import Sequence, Set

from rerankd.core import InvalidRequest, LabelRequest, PromptGroup, Segment
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed
from rerankd.prompts.visuals import common_prefix


class VerbatimPrompts:
    """Tokenises as transformers does: a special token's string in a text is that token."""

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int, vocabulary: int, visual: Set[int]) -> None:
        """max_tokens: in one prompt; vocabulary: how many token ids there are

        visual: those that stand for images and videos in a model that sees
        """
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary
        self._visual = visual

    def build(self, request: LabelRequest) -> PromptGroup:
        """The request's prompts; the prefix is the longest that all share.

        Raises InvalidRequest for prompts that are empty, too long or hold pictures, and for ids that are no tokens.
        """
        if not request.labels.token_ids:
            raise InvalidRequest("labels", "must hold at least one token id")
        self._check_ids("labels", request.labels.token_ids)
        texts = [well_formed(prompt) for prompt in request.prompts if isinstance(prompt, str)]
        encoded = iter(self._tokenizer.ids(texts, special=True))
        prompts = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in request.prompts]
        for i, ids in enumerate(prompts):
            self._check(f"prompts[{i}]", ids)
        shared = common_prefix(prompts)
        return PromptGroup(
            prefix=Segment(prompts[0][:shared] if prompts else []),
            suffixes=tuple(Segment(ids[shared:]) for ids in prompts),
            truncated=(False,) * len(prompts),
            labels=request.labels,
        )

    def _check(self, field: str, ids: list[int]) -> None:
        if not ids:
            raise InvalidRequest(field, "makes an empty prompt; give at least one token")
        self._check_ids(field, ids)
        if len(ids) > self._max_tokens:
            raise InvalidRequest(
                field, f"makes a prompt of {len(ids)} tokens, and {self._max_tokens} are allowed; shorten it"
            )
        if not self._visual.isdisjoint(ids):
            raise InvalidRequest(field, "holds a token that stands for an image or a video; only text is read here")

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise InvalidRequest(
                    field, f"{token} is no token id of this model, which has 0 to {self._vocabulary - 1}"
                )

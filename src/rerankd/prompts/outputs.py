"""Prompts of requests for the outputs of a head: a text's embedding, or a logit for each label."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.core import Embeddings, InvalidRequest, PromptGroup, RerankRequest, Visuals
from rerankd.prompts.bi_encoder import BiEncoderPrompts, TextFormat
from rerankd.prompts.cross_encoder import CrossEncoderPrompts
from rerankd.prompts.tokenizer import LoadedTokenizer


class EmbeddingPrompts:
    """A PromptBuilder of texts that are embedded, as sentence-transformers' `encode` has them."""

    takes_instruction = False

    def __init__(self, texts: BiEncoderPrompts, prompts: Mapping[str, str], default: str) -> None:
        """prompts: beginnings of a text, by name; default: the beginning where a request names none."""
        self._texts = texts
        self._prompts = prompts
        self._default = default

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The documents as suffixes. InvalidRequest for a prompt of another name, too. See `PromptBuilder.build`."""
        assert isinstance(request.outputs, Embeddings)
        name = request.outputs.prompt
        if name is not None and name not in self._prompts:
            raise InvalidRequest("outputs.prompt", f"is {name!r:.60}, and this model has {', '.join(self._prompts)}")
        return self._texts.alone(request, self._default if name is None else self._prompts[name])


class LabelPrompts:
    """A PromptBuilder of texts, or pairs of them, that a classifier labels: in the tokenizer's own template."""

    takes_instruction = False

    def __init__(self, tokenizer: LoadedTokenizer, max_tokens: int) -> None:
        self._texts = BiEncoderPrompts(tokenizer, max_tokens, TextFormat(), TextFormat())
        self._pairs = CrossEncoderPrompts(tokenizer, max_tokens)

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The documents as suffixes, each behind the query if there is one. See `PromptBuilder.build`."""
        return self._pairs.build(request) if request.query else self._texts.alone(request, "")

"""How a model for late interaction reads texts: markers before them, and mask tokens behind a short query."""

from __future__ import annotations

from rerankd.core import ModelError
from rerankd.models.checkpoint.late_interaction import Expansion, LateInteraction
from rerankd.prompts.bi_encoder import TextFormat
from rerankd.prompts.tokenizer import LoadedTokenizer


def text_formats(settings: LateInteraction, tokenizer: LoadedTokenizer) -> tuple[TextFormat, TextFormat]:
    """How queries and documents are read; ModelError for a token of the settings that the vocabulary lacks."""
    query = _marked(settings.query_prompt, settings, tokenizer)
    document = _marked(settings.document_prompt, settings, tokenizer)
    expansion = settings.expansion
    if expansion is None:
        return TextFormat(*query, length=settings.query_length), TextFormat(*document)
    filled = TextFormat(
        *query,
        length=expansion.length if expansion.cuts else settings.query_length,
        filler=_filler(expansion, tokenizer),
        fill=expansion.length,
        unseen=not expansion.attend,
    )
    return filled, TextFormat(*document)


def _marked(prompt: str, settings: LateInteraction, tokenizer: LoadedTokenizer) -> tuple[str, tuple[int, ...]]:
    """A prompt's text, and the id of the token that begins the prompt, as the whole prompt or as its first word."""
    words = prompt.split(None, 1)
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    for marker in (prompt, words[0]) if words else ():
        is_token = marker in special or (settings.marked and tokenizer.tokenizer.token_to_id(marker) is not None)
        if is_token:
            return prompt[len(marker) :], (tokenizer.token_id(marker),)
    return prompt, ()


def _filler(expansion: Expansion, tokenizer: LoadedTokenizer) -> int:
    special = tokenizer.special_tokens
    token = expansion.token or special.get("mask_token") or special.get("eos_token")
    if token is None:
        raise ModelError("Queries are expanded by mask tokens, and tokenizer_config.json names no `mask_token`.")
    return tokenizer.token_id(token)

"""Tokenizers of SentencePiece's Unigram models (Kudo, 2018), made for the library tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rerankd.core import ModelError

SPACE = "\u2581"
"""The character for a space in a piece."""


def unigram(
    pieces: Sequence[tuple[str, float]], unknown: int, charsmap: bytes, prefix: bool = True, byte_fallback: bool = False
) -> Tokenizer:
    """A tokenizer that splits a text as SentencePiece does with these pieces and their log-probabilities.

    unknown: the number of the piece for characters that no piece has
    charsmap: SentencePiece's own table of normalisation; empty for none
    prefix: whether a text begins with a space of its own
    byte_fallback: whether a character that no piece has becomes the pieces of its bytes

    White space at the ends, and more than one space between words, count for nothing. Raises ModelError for pieces or
    a table that the library does not take.
    """
    try:
        tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id=unknown, byte_fallback=byte_fallback))
        if charsmap:
            tokenizer.normalizer = normalizers.Precompiled(charsmap)
    except Exception as error:  # The library raises bare Exception.
        raise ModelError(f"The Unigram model cannot be used: {error}.") from None
    scheme = "always" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)]
    )
    return tokenizer


def pair_template(first: tuple[str, int], last: tuple[str, int], between: int, types: bool) -> processors.PostProcessor:
    """The post-processor that puts `first` and `last` around a text, and `last` `between` times between two texts.

    types: whether the second text of a pair has token type 1
    """
    second = 1 if types else 0
    middle = f"{last[0]}:0 " + f"{last[0]}:{second} " * (between - 1)
    return processors.TemplateProcessing(
        single=f"{first[0]}:0 $A:0 {last[0]}:0",
        pair=f"{first[0]}:0 $A:0 {middle}$B:{second} {last[0]}:{second}",
        special_tokens=[first, last],
    )

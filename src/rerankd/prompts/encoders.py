"""The parts that both kinds of encoders share: texts as plain tokens, and the special tokens around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from rerankd import work
from rerankd.core import Segment
from rerankd.prompts.chunks import Chunks, split
from rerankd.prompts.limits import Limits
from rerankd.prompts.tokenizer import LoadedTokenizer


class PlainTexts:
    """Tokenises texts so that no part of them becomes a special token."""

    def __init__(self, loaded: LoadedTokenizer) -> None:
        self._loaded = loaded
        loaded.tokenizer.encode_special_tokens = True
        added = loaded.tokenizer.get_added_tokens_decoder()
        # Any text may hold unknown characters.
        unknown = {"[UNK]", "<unk>", loaded.special_tokens.get("unk_token")}
        self._special = {
            token_id for token_id, token in added.items() if token.special and token.content not in unknown
        }

    def reach(self, text: str, tokens: int | None, limits: Limits) -> str:
        """The part of a text that holds more than `tokens` tokens, if the text may be cut; see
        `LoadedTokenizer.reach`."""
        return self._loaded.reach(text, tokens, limits.side) if limits.may_cut else text

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, nothing added; see `LoadedTokenizer.ids`."""
        return [
            ids if self._special.isdisjoint(ids) else self._escaped(text)
            for text, ids in zip(texts, self._loaded.ids(texts), strict=True)
        ]

    def split(self, text: str, budget: int, limits: Limits, excess: Callable[[str], int], field: str) -> Chunks | None:
        """A text's chunks of at most `budget` tokens; see `chunks.split`."""
        return split(text, self._loaded.offsets(text), budget, limits, excess, field)

    def _escaped(self, text: str) -> list[int]:
        """For a vocabulary that has special tokens as pieces, as XLM-R's Unigram model has: split these by a space."""
        with self._loaded.encoded(text) as encoding:
            pairs = zip(encoding.offsets, encoding.ids, strict=True)
            spans = [span for span, token in pairs if token in self._special]
        for start, end in reversed(spans):
            middle = (start + end) // 2
            text = f"{text[:middle]} {text[middle:]}"
        return [token for token in self._loaded.ids([text])[0] if token not in self._special]


class SpecialTokens:
    """The tokens that a tokenizer's template puts around one text or a pair, found from one example.

    count: the number of these tokens
    """

    def __init__(self, tokenizer: Tokenizer, *, pair: bool) -> None:
        example = tokenizer.encode("a", "a" if pair else None)
        self._parts: list[tuple[int | None, list[int], int]] = []
        previous: int | None = -1
        for token, sequence, token_type in zip(example.ids, example.sequence_ids, example.type_ids, strict=True):
            if sequence is None:
                self._parts.append((None, [token], token_type))
            elif sequence != previous:
                self._parts.append((sequence, [], token_type))
            previous = sequence
        self._typed = any(token_type for _, _, token_type in self._parts)
        self.count = sum(len(ids) for _, ids, _ in self._parts)

    def around(self, *texts: list[int]) -> Segment:
        """The texts' token ids with the special tokens, and the token types where any is not zero."""
        ids: list[int] = []
        types: list[int] = []
        for sequence, special, token_type in self._parts:
            part = special if sequence is None else texts[sequence]
            ids += part
            if self._typed:
                types += [token_type] * len(part)
        work.count("tokens", len(ids))
        return Segment(ids, types)

"""Seams: places where a text may be split so that its parts, tokenised apart, have the tokens of the whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, normalizers

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the tokenizers of Qwen2, Qwen2.5, Qwen3 and Qwen3-VL split a text into the pieces that BPE reads one by one."""
_QWEN_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}
_PLACE = re.compile(r"(?<=[A-Za-z])[!-/:-@\[-`{-~]")
_SEARCHED = 256
"""Characters at an end of a text in which a seam is looked for: any sentence has one."""


class Seams:
    """Finds seams: places between a letter of ASCII and a sign of ASCII behind it.

    No match of Qwen's pattern contains both, and no match looks behind its start. A match that ends with the letter
    ends there unless a letter follows. So the pieces on one side of a seam do not depend on the text on the other side.
    NFC joins neither with the text on the other side. Added tokens, which are split off first, must not reach over a
    seam. Other tokenizers have no seams here.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self._known = _is_qwens(tokenizer) and not any(
            token.normalized or token.lstrip or token.rstrip or token.single_word for token in added
        )
        self._halves: dict[str, list[tuple[str, str]]] = {}
        for string in (token.content for token in added):
            for match in _PLACE.finditer(string):
                place = match.start()
                self._halves.setdefault(string[place - 1 : place + 1], []).append((string[:place], string[place:]))

    def last(self, text: str) -> int:
        """The last seam of `text`, where it may be split whatever text follows it; 0 where there is none."""
        return next(self._seams(text, reversed(self._places(text, max(len(text) - _SEARCHED, 0), len(text)))), 0)

    def first(self, text: str) -> int:
        """The first seam, where `text` may be split whatever text comes before it; its length where there is none."""
        return next(self._seams(text, self._places(text, 0, _SEARCHED)), len(text))

    def _places(self, text: str, start: int, stop: int) -> list[int]:
        return [match.start() for match in _PLACE.finditer(text, start, stop)] if self._known else []

    def _seams(self, text: str, places: Iterable[int]) -> Iterator[int]:
        """The `places` that no added token can reach over."""
        for place in places:
            halves = self._halves.get(text[place - 1 : place + 1], ())
            if not any(_around(text, place, first, second) for first, second in halves):
                yield place


def _around(text: str, place: int, first: str, second: str) -> bool:
    """Whether `first` may stand before `place` and `second` behind it, once more is put around `text`."""
    before, behind = text[max(place - len(first), 0) : place], text[place : place + len(second)]
    return first.endswith(before) and second.startswith(behind)


def _is_qwens(tokenizer: Tokenizer) -> bool:
    if tokenizer.num_special_tokens_to_add(False):  # They belong around a whole text.
        return False
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if not isinstance(model, models.BPE) or model.dropout or not isinstance(normalizer, normalizers.NFC | None):
        return False
    if tokenizer.pre_tokenizer is None:
        return False
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    for part in state.get("pretokenizers", ()):
        part.pop("trim_offsets", None)  # It changes no token.
    return bool(state == _QWEN_PRE_TOKENIZER)

"""The escaping of special tokens in user text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from tokenizers import Tokenizer

_Tree: TypeAlias = "dict[str, _Tree]"
"""Strings as a tree: below each first character the rests of the strings that begin with it; "" where a string ends."""


class AddedTokens:
    """The added tokens: strings that a tokenizer reads as single tokens anywhere in a text.

    Such a string in user text would end a turn, or open an image: `escape` parts it by a space after its first
    character, so that it stays readable and is text. A token of one character, or of white space, is not parted.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        strings = sorted({token.content for token in tokenizer.get_added_tokens_decoder().values()})
        self._parted = {string: parted for string in strings if (parted := _parted(string))}
        self._pattern = re.compile(pattern_of(self._parted))

    def escape(self, text: str) -> str:
        """`text` without any added token; equal to `text` where it holds none."""
        # Splitting one added token can leave a shorter one whole, hence the loop; each round leaves fewer.
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: self._parted[match[0]], text)
        return text


def _parted(token: str) -> str | None:
    """The token with a space at the first place where it does not stay whole behind it; None where there is none."""
    parted = (f"{token[:place]} {token[place:]}" for place in range(1, len(token)))
    return next((candidate for candidate in parted if token not in candidate), None)


def pattern_of(strings: Iterable[str]) -> str:
    """A pattern of any of the strings, at each place the longest; of nothing where there are none.

    No character of a text is compared more than a few times. In a plain list of alternatives, `re` would try one after
    the other: for hundreds of strings that begin alike this takes seconds, in which no other thread runs.
    """
    tree: _Tree = {}
    for string in strings:
        node = tree
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(tree) or r"(?!)"


def _branches(node: _Tree) -> str:
    branches = [re.escape(character) + _branches(child) for character, child in node.items() if character]
    if not branches:
        return ""
    if "" in node:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"

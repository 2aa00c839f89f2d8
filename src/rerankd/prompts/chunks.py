"""Splitting a text that is too long into chunks that fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rerankd import work
from rerankd.core import Chunk, InvalidRequest
from rerankd.prompts.limits import Limits

Run: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a text, at least one, in its order.

    whole: whether the chunks hold all of the text
    reduced: whether some chunks overlap by less than `overlap_tokens`, since half a chunk has fewer tokens
    """

    chunks: tuple[Chunk, ...]
    whole: bool
    reduced: bool


def split(
    text: str,
    offsets: Sequence[tuple[int, int]],
    budget: int,
    limits: Limits,
    excess: Callable[[str], int],
    field: str,
) -> Chunks | None:
    """The chunks of `text` by `limits.chunking`; None if not even one character fits.

    offsets: start and end in the text of each of its tokens
    budget: the most tokens of a chunk
    excess: returns the number of tokens by which a chunk alone is too long; a chunk alone may have other tokens than in
        the text

    A chunk has whole characters and ends at the end of a token. It begins `overlap_tokens` before the end of the chunk
    before it, or half of that chunk's tokens if these are fewer. Chunks begin at the start of the text, or with
    `side="left"` at its end. Raises InvalidRequest if more chunks would be needed and nothing may be cut.
    """
    assert limits.chunking is not None
    most, overlap = limits.chunking.max_chunks_per_doc, limits.chunking.overlap_tokens
    if budget < 1:
        return None
    tokens, characters = _marks(offsets, len(text))
    last = len(tokens) - 1
    if limits.side == "left":
        mirrored = [tokens[-1] - token for token in reversed(tokens)]
        mirrored_runs, whole, reduced = _runs(
            mirrored, budget, overlap, most, lambda i, j: excess(text[characters[last - j] : characters[last - i]])
        )
        runs = [(last - stop, last - start) for start, stop in reversed(mirrored_runs)]
    else:
        runs, whole, reduced = _runs(
            tokens, budget, overlap, most, lambda i, j: excess(text[characters[i] : characters[j]])
        )
    if not whole and not limits.may_cut:
        work.refuse(
            InvalidRequest(
                field,
                f"takes {tokens[-1]} tokens, and {len(runs)} chunks of up to {budget} tokens do not hold all of it; "
                "allow more chunks, shorten it, or allow truncation",
            )
        )
    chunks = [
        Chunk(
            index=index,
            tokens=(tokens[start], tokens[stop]),
            characters=(characters[start], characters[stop]),
            text=text[characters[start] : characters[stop]],
        )
        for index, (start, stop) in enumerate(runs)
    ]
    return Chunks(tuple(chunks), whole, reduced) if chunks else None


def reduced_overlap(split: Iterable[Chunks | None]) -> tuple[str, ...]:
    """The request's field for the overlap, if some chunks overlap by less than the request asks for."""
    return ("chunking.overlap_tokens",) if any(chunks is not None and chunks.reduced for chunks in split) else ()


def _marks(offsets: Sequence[tuple[int, int]], length: int) -> tuple[list[int], list[int]]:
    """The places where a text may be split, never inside a character: tokens and characters before each place.

    White space that no token covers belongs to the token behind it, at the end of the text to the last one.
    """
    tokens, characters = [0], [0]
    for token in range(1, len(offsets)):
        (_, end), (start, _) = offsets[token - 1], offsets[token]
        if characters[-1] < end <= start and end < length:
            tokens.append(token)
            characters.append(end)
    return [*tokens, len(offsets)], [*characters, length]


def _runs(
    marks: Sequence[int], budget: int, overlap: int, most: int | None, excess: Callable[[int, int], int]
) -> tuple[list[Run], bool, bool]:
    """Runs of marks, each as long as it can be.

    With them, whether they hold everything between the first and last mark, and whether some share less than `overlap`.

    marks: ascending places in tokens; budget, overlap: in the same tokens; excess: of a run that is tokenised alone
    """
    runs: list[Run] = []
    last = len(marks) - 1
    start = reached = 0
    whole, reduced = True, False
    while most is None or len(runs) < most:
        stop = bisect_right(marks, marks[start] + budget) - 1
        while stop > start and (over := excess(start, stop)) > 0:
            shorter = bisect_right(marks, marks[stop] - over) - 1
            stop = max(shorter, start + 1) if stop > start + 1 else start
        if stop > reached:
            work.count("chunks", 1)
            runs.append((start, stop))
            if stop == last:
                return runs, whole, reduced
            shared = min(overlap, (marks[stop] - marks[start]) // 2)
            reduced |= shared < overlap and len(runs) != most
            start, reached = max(start + 1, bisect_right(marks, marks[stop] - shared) - 1), stop
        elif start < reached:  # nothing new fits behind as much as it shares: let it share less
            start = (start + reached + 1) // 2
        else:  # one character takes more tokens than the budget, and is left out
            whole = False
            start = reached = start + 1
            if start == last:
                break
    return runs, False, reduced

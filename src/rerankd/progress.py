"""The progress of a call: how many of its documents are scored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from rerankd.core import PromptGroup

PROGRESS_FROM = 256
"""A blocking call with this many documents or more shows a progress bar, unless it says otherwise."""


@contextmanager
def progress_bar(documents: int, show: bool | None) -> Iterator[Callable[[int], object] | None]:
    """The function that advances a bar over documents; None where no bar is shown."""
    if not (documents >= PROGRESS_FROM if show is None else show):
        yield None
        return
    with tqdm(total=documents, desc="Scoring", unit="doc") as bar:
        yield bar.update


def by_document(group: PromptGroup, on_progress: Callable[[int], object]) -> Callable[[int], object]:
    """Turn reports of scored suffixes, in order, into reports of scored documents: those whose last suffix is."""
    stops = [places.stop for places in group.places()]
    scored = 0

    def advance(suffixes: int) -> None:
        nonlocal scored
        before, scored = scored, scored + suffixes
        if finished := bisect_right(stops, scored) - bisect_right(stops, before):
            on_progress(finished)

    return advance

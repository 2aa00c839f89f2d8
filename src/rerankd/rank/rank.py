"""`rerankd rank`: score the documents of files, keep finished results in a journal, and write the rankings at the
end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, TypeVar

from tqdm import tqdm

from rerankd.core import RerankdError
from rerankd.rank.files import STANDARD, BadLines, FileProblem
from rerankd.rank.journal import Journal
from rerankd.rank.queries import Queries
from rerankd.rank.runs import Ranked, Ranking, check_ids, write_rankings
from rerankd.rank.scoring import Block, Scorer, Wanted, in_blocks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Output:
    """Where rankings go. `tag` is the last column of a TREC run."""

    path: str
    format: str
    tag: str


@dataclass
class Summary:
    """Counts of a run. `kept` are documents that an earlier run finished; seconds are those of this run."""

    queries: int = 0
    documents: int = 0
    kept: int = 0
    truncated: int = 0
    bad: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        done = self.documents - self.kept
        text = f"{self.queries:,} queries, {self.documents:,} documents"
        if self.kept:
            text += f", {self.kept:,} of them from before"
        text += f"; {self.seconds:.1f} s, {done / max(self.seconds, 1e-9):,.1f} documents/s"
        if self.truncated:
            text += f"; {self.truncated:,} documents were cut to fit"
        return text + (f"; {self.bad:,} left out" if self.bad else "")


class Progress:
    """A bar over documents, or over the file where nothing counts them, with documents/s and the time that is left.

    Of standard input nobody knows the end: there is a count alone.
    """

    def __init__(self, queries: Queries, shown: bool) -> None:
        self._queries, self.documents, self._began = queries, 0, perf_counter()
        self._by_file = queries.documents is None and queries.fraction is not None
        if self._by_file:
            form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            # 0: the counts behind the bar change where the bar does not.
            self._bar = tqdm(total=1000, bar_format=form, disable=not shown, smoothing=0.05, miniters=0)
        else:
            self._bar = tqdm(total=queries.documents, unit="doc", disable=not shown, smoothing=0.05)

    def add(self, documents: int) -> None:
        """Count documents that were scored; called from any thread."""
        self.documents += documents
        if not self._by_file:
            self._bar.update(documents)
            return
        rate = self.documents / max(perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{self.documents:,} documents, {rate:,.1f} documents/s", refresh=False)
        self._bar.update(int(1000 * (self._queries.fraction or 0)) - self._bar.n)

    def kept(self, documents: int) -> None:
        """Count documents that were scored before: they say nothing of how fast it goes."""
        if not self._by_file and not self._bar.disable:
            self._bar.initial += documents
            self._bar.n += documents
            self._bar.refresh()

    def tell(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def rank(
    queries: Queries,
    scorer: Scorer,
    wanted: Wanted,
    output: Output,
    about: Mapping[str, Any],
    bad: BadLines,
    *,
    restart: bool = False,
    progress: bool = True,
) -> Summary:
    """Rank every query and write the output. A run that was stopped goes on where its journal ends.

    Standard output has no journal: each block is written as soon as those before it are.

    about: what the model is and how it is asked; a journal of something else is not gone on with

    Raises RerankdError; what was finished until then is kept.
    """
    summary, began = Summary(), perf_counter()
    with Progress(queries, progress) as bar:
        bad.tell = bar.tell
        if output.path == STANDARD:
            blocks = _scored(in_blocks(queries, scorer.block_documents), scorer, wanted, output, bad, bar)
            write_rankings(output.path, output.format, _counted(_flushed(_in_order(blocks)), summary), output.tag)
        else:
            told = {**about, **queries.digests, **asdict(wanted), "block": scorer.block_documents}
            with Journal(output.path, told, restart) as journal:
                if len(journal):
                    bar.tell(f"Going on with {journal.path}")
                left = _left(journal, in_blocks(queries, scorer.block_documents), summary, bar)
                for block, rankings in _scored(left, scorer, wanted, output, bad, bar):
                    journal.add(block.number, block.digest, [_packed(ranking) for ranking in rankings])
                kept = _kept(journal, bad)
                write_rankings(output.path, output.format, _counted(kept, summary), output.tag)
                journal.finish()
    summary.bad, summary.seconds = bad.count, perf_counter() - began
    return summary


def _left(journal: Journal, blocks: Iterable[Block], summary: Summary, bar: Progress) -> Iterator[Block]:
    """The blocks that are not finished. Raises FileProblem where a finished one was of another input."""
    for block in blocks:
        known = journal.digest(block.number)
        if known is None:
            yield block
        elif known != block.digest:
            raise FileProblem(
                f"{block.queries[0].where}, or a line behind it, has changed since {journal.path} was written; "
                "give another output, or --restart to begin anew."
            )
        else:
            summary.kept += block.documents
            bar.kept(block.documents)


def _scored(
    blocks: Iterable[Block], scorer: Scorer, wanted: Wanted, output: Output, bad: BadLines, bar: Progress
) -> Iterator[tuple[Block, list[Ranking | str]]]:
    """The blocks with their rankings, as they are finished; the reason in place of one for a query that is left out.

    Raises FileProblem for an id that the output cannot hold, before its query is scored where it is the query's.
    """

    def checked() -> Iterator[Block]:
        for block in blocks:
            for query in block.queries:
                check_ids(query.id, (), output.format)
            yield block

    for block, found in scorer.score(checked(), wanted, bar.add):
        rankings = [str(one.error) if one.error else one.ranking() for one in found]
        for ranking, one in zip(rankings, found, strict=True):
            _report(ranking, bad)
            for name in sorted(one.ignored):
                bad.note(f"without effect, or with less than was asked for: {name}")
            if isinstance(ranking, Ranking):
                check_ids(ranking.query, (document.id for document in ranking.results), output.format)
        yield block, rankings


def _in_order(blocks: Iterable[tuple[Block, list[Ranking | str]]]) -> Iterator[list[Ranking | str]]:
    """The rankings of the first block, of the second, and so on: a block waits for those before it."""
    waiting: dict[int, list[Ranking | str]] = {}
    following = 0
    for block, rankings in blocks:
        waiting[block.number] = rankings
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _flushed(blocks: Iterable[T]) -> Iterator[T]:
    """The blocks. What was written of one is in the reader's hands before the next one is waited for."""
    for block in blocks:
        yield block
        sys.stdout.flush()


def _report(ranking: Ranking | str, bad: BadLines) -> None:
    """List a query that was left out, or the documents of a query that were."""
    for problem in [ranking] if isinstance(ranking, str) else ranking.failed.values():
        bad.add(RerankdError(problem))


def _kept(journal: Journal, bad: BadLines) -> Iterator[list[Ranking | str]]:
    """The rankings of all blocks. Those of an earlier run are reported again: each run lists all that is left out."""
    for block, before in journal.results():
        rankings = list(map(_unpacked, block))
        for ranking in rankings if before else ():
            _report(ranking, bad)
        yield rankings


def _packed(ranking: Ranking | str) -> list[Any] | str:
    if isinstance(ranking, str):
        return ranking
    results = [[one.id, one.index, one.score, one.truncated] for one in ranking.results]
    return [ranking.query, results, ranking.scored, ranking.query_truncated, dict(ranking.failed)]


def _unpacked(packed: list[Any] | str) -> Ranking | str:
    if isinstance(packed, str):
        return packed
    query, results, scored, query_truncated, failed = packed
    return Ranking(query, tuple(Ranked(*one) for one in results), scored, query_truncated, failed)


def _counted(blocks: Iterable[Iterable[Ranking | str]], summary: Summary) -> Iterator[Ranking]:
    """The rankings of blocks, counted as they pass."""
    for block in blocks:
        for ranking in block:
            if isinstance(ranking, str):
                continue
            summary.queries += 1
            summary.documents += ranking.scored
            summary.truncated += sum(bool(one.truncated) for one in ranking.results)
            yield ranking

"""`rerankd rank`: score the documents of files, record finished results in a journal, and write the rankings at the
end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, TypeVar

from tqdm import tqdm

from rerankd.core import RerankdError
from rerankd.core.counts import counted, noun
from rerankd.rank.files import STANDARD, BadLines, FileProblem
from rerankd.rank.journal import Journal
from rerankd.rank.queries import Queries
from rerankd.rank.runs import Ranked, Ranking, check_ids, write_rankings
from rerankd.rank.scoring import Block, RankSettings, Scorer, in_blocks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Output:
    """Where to write the rankings, and how.

    path: a file, or "-" for standard output
    format: one of `runs.FORMATS`
    tag: the name of the run, in the last column of a TREC run
    """

    path: str
    format: str
    tag: str


@dataclass
class Summary:
    """The counts of a run.

    kept: documents that an earlier, stopped run scored; `documents` includes them
    truncated: documents that were cut to fit the model's context, whether they are in the output or not
    bad: lines, queries and documents that were left out
    seconds: duration of this run, without the earlier one
    queries_truncated: queries that were cut to fit
    """

    queries: int = 0
    documents: int = 0
    kept: int = 0
    truncated: int = 0
    bad: int = 0
    seconds: float = 0.0
    queries_truncated: int = 0

    def __str__(self) -> str:
        done = self.documents - self.kept
        text = f"{counted(self.queries, 'query', 'queries')}, {counted(self.documents, 'document')}"
        if self.kept:
            text += f", {self.kept:,} of them from an earlier run"
        text += f"; {self.seconds:.1f} s, {done / max(self.seconds, 1e-9):,.1f} documents/s"
        if count := self.queries_truncated:
            text += f"; {counted(count, 'query', 'queries')} {noun(count, 'was', 'were')} cut to fit"
        if self.truncated:
            text += f"; {counted(self.truncated, 'document')} {noun(self.truncated, 'was', 'were')} cut to fit"
        return text + (f"; {self.bad:,} left out" if self.bad else "")


class Progress:
    """A progress bar with the rate in documents/s and the time left.

    The bar measures documents, or if their number is unknown, the part of the file that was read. For standard input,
    whose length is unknown, there is only a count.
    """

    def __init__(self, queries: Queries, is_shown: bool) -> None:
        self._queries, self.documents, self._began = queries, 0, perf_counter()
        self._by_file = queries.documents is None and queries.fraction is not None
        if self._by_file:
            form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            # miniters=0, because the counts after the bar change more often than the bar itself.
            self._bar = tqdm(total=1000, bar_format=form, disable=not is_shown, smoothing=0.05, miniters=0)
        else:
            self._bar = tqdm(total=queries.documents, unit="doc", disable=not is_shown, smoothing=0.05)

    def add(self, documents: int) -> None:
        """Count documents that were scored. May be called from any thread."""
        self.documents += documents
        if not self._by_file:
            self._bar.update(documents)
            return
        rate = self.documents / max(perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{self.documents:,} documents, {rate:,.1f} documents/s", refresh=False)
        self._bar.update(int(1000 * (self._queries.fraction or 0)) - self._bar.n)

    def kept(self, documents: int) -> None:
        """Count documents that an earlier run scored. They advance the bar, and do not count in the rate."""
        if not self._by_file and not self._bar.disable:
            self._bar.initial += documents
            self._bar.n += documents
            self._bar.refresh()

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def rank(
    queries: Queries,
    scorer: Scorer,
    settings: RankSettings,
    output: Output,
    about: Mapping[str, Any],
    bad: BadLines,
    *,
    restart: bool = False,
    progress: bool = True,
) -> Summary:
    """Rank every query and write the output. A stopped run resumes where its journal ends.

    Standard output has no journal: each block is written as soon as all blocks before it are written.

    about: the model and its options, as JSON-ready data; a journal with other values is refused
    bad: what happens to bad lines, queries and documents
    restart: ignore an existing output and journal

    Raises RerankdError. The journal then keeps all finished blocks.
    """
    summary, began = Summary(), perf_counter()
    with Progress(queries, progress) as bar:
        bad.tell = bar.tell
        if output.path == STANDARD:
            blocks = _scored(in_blocks(queries, scorer.block_documents), scorer, settings, output, bad, bar)
            write_rankings(output.path, output.format, _counted(_flushed(_in_order(blocks)), summary), output.tag)
        else:
            identity = {**about, **queries.digests, **asdict(settings), "block": scorer.block_documents}
            with Journal(output.path, identity, restart) as journal:
                if len(journal):
                    bar.tell(f"Resuming from {journal.path}")
                unfinished = _unfinished(journal, in_blocks(queries, scorer.block_documents), summary, bar)
                for block, rankings in _scored(unfinished, scorer, settings, output, bad, bar):
                    journal.add(block.number, block.digest, [_to_json(ranking) for ranking in rankings])
                kept = _kept(journal, bad)
                write_rankings(output.path, output.format, _counted(kept, summary), output.tag)
                journal.finish()
    summary.bad, summary.seconds = bad.count, perf_counter() - began
    return summary


def _unfinished(journal: Journal, blocks: Iterable[Block], summary: Summary, bar: Progress) -> Iterator[Block]:
    """The unfinished blocks. Raises FileProblem if the input of a finished block has changed."""
    for block in blocks:
        finished = journal.digest(block.number)
        if finished is None:
            yield block
        elif finished != block.digest:
            raise FileProblem(
                f"{block.queries[0].where}, or a line after it, has changed since {journal.path} was written; "
                "give another output, or --restart to start again."
            )
        else:
            summary.kept += block.documents
            bar.kept(block.documents)


def _scored(
    blocks: Iterable[Block], scorer: Scorer, settings: RankSettings, output: Output, bad: BadLines, bar: Progress
) -> Iterator[tuple[Block, list[Ranking | str]]]:
    """Finished blocks with their rankings. A query that is left out has the reason in place of a ranking.

    Raises FileProblem for an id that the output format cannot hold; the ids of queries are checked before scoring.
    """

    def checked() -> Iterator[Block]:
        for block in blocks:
            for query in block.queries:
                check_ids(query.id, (), output.format)
            yield block

    for block, scores in scorer.score(checked(), settings, bar.add):
        rankings = [str(query.error) if query.error else query.ranking() for query in scores]
        for ranking, query in zip(rankings, scores, strict=True):
            _report(ranking, bad)
            for name in sorted(query.ignored):
                bad.note(f"ignored, or applied only in part: {name}")
            if isinstance(ranking, Ranking):
                check_ids(ranking.query, (document.id for document in ranking.results), output.format)
        yield block, rankings


def _in_order(blocks: Iterable[tuple[Block, list[Ranking | str]]]) -> Iterator[list[Ranking | str]]:
    """The rankings of the blocks by rising number. A block that finishes early waits for the blocks before it."""
    waiting: dict[int, list[Ranking | str]] = {}
    next_number = 0
    for block, rankings in blocks:
        waiting[block.number] = rankings
        while next_number in waiting:
            yield waiting.pop(next_number)
            next_number += 1


def _flushed(blocks: Iterable[T]) -> Iterator[T]:
    """The blocks, with standard output flushed after each, so that a reader gets a block as soon as it is finished."""
    for block in blocks:
        yield block
        sys.stdout.flush()


def _report(ranking: Ranking | str, bad: BadLines) -> None:
    """Report a query that was left out, or the documents of a query that were left out."""
    for problem in [ranking] if isinstance(ranking, str) else ranking.failed.values():
        bad.add(RerankdError(problem))


def _kept(journal: Journal, bad: BadLines) -> Iterator[list[Ranking | str]]:
    """The rankings of all blocks. Whatever an earlier run left out is reported again, so that each run lists it all."""
    for block, from_earlier_run in journal.results():
        rankings = list(map(_from_json, block))
        for ranking in rankings if from_earlier_run else ():
            _report(ranking, bad)
        yield rankings


def _to_json(ranking: Ranking | str) -> list[Any] | str:
    if isinstance(ranking, str):
        return ranking
    results = [[document.id, document.index, document.score, document.truncated] for document in ranking.results]
    return [ranking.query, results, ranking.scored, ranking.query_truncated, dict(ranking.failed), ranking.cut]


def _from_json(value: list[Any] | str) -> Ranking | str:
    if isinstance(value, str):
        return value
    query, results, *others = value
    return Ranking(query, tuple(Ranked(*document) for document in results), *others)


def _counted(blocks: Iterable[Iterable[Ranking | str]], summary: Summary) -> Iterator[Ranking]:
    """The rankings of the blocks, counted in `summary` on the way."""
    for block in blocks:
        for ranking in block:
            if isinstance(ranking, str):
                continue
            summary.queries += 1
            summary.documents += ranking.scored
            summary.truncated += ranking.cut
            summary.queries_truncated += bool(ranking.query_truncated)
            yield ranking

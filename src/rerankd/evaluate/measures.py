"""Judgments, runs, and what `ir-measures` makes of them, query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rerankd.core import RerankdError
from rerankd.rank.collection import RRF_CONSTANT
from rerankd.rank.files import BadLine, BadLines, FileProblem, Source, needed
from rerankd.rank.rows import Columns, decoded, rows
from rerankd.rank.runs import read_run

DEFAULT = ("nDCG@10", "RR@10", "AP", "R@100", "P@5", "Judged@10")
Judgments: TypeAlias = Mapping[str, Mapping[str, int]]
"""Query, document, grade."""
Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query, document, score."""
Values: TypeAlias = Mapping[str, Mapping[str, float]]
"""Measure, query, value."""
QRELS = Columns(
    names={
        "query_id": ("query_id", "qid", "query"),
        "iteration": ("iteration", "iter"),
        "id": ("corpus_id", "document_id", "doc_id", "docid", "pid", "id", "document"),
        "grade": ("score", "relevance", "rel", "grade", "label"),
    },
    positions={3: ("query_id", "id", "grade"), 4: ("query_id", "iteration", "id", "grade")},
)


class MeasureError(RerankdError):
    """A measure that is not known, or nothing to measure."""


def parse(names: Sequence[str]) -> dict[str, Any]:
    """Measures by their own names, such as nDCG@10. Raises MeasureError."""
    library = needed("ir_measures", "Measures", "eval")
    found = {}
    for name in names:
        try:
            measure = library.parse_measure(name)
        except (NameError, ValueError, SyntaxError) as error:
            raise MeasureError(
                f"{name} is not a measure ({error}); give some such as {', '.join(DEFAULT)} (see ir-measur.es)."
            ) from None
        found[str(measure)] = measure
    return found


def read_judgments(path: str, bad: BadLines) -> dict[str, dict[str, int]]:
    """Judgments of a TREC file (4 columns) or of BEIR's (TSV with a header), CSV, JSONL or Parquet.

    Raises FileProblem, and BadLine for grades that are no whole numbers.
    """
    source = Source(path)
    judgments: dict[str, dict[str, int]] = {}
    for number, cells in _judged(source, bad):
        try:
            missing = [name for name in ("query_id", "id", "grade") if cells.get(name) is None]
            if missing:
                raise BadLine(source.name, number, f"has no {missing[0]}.")
            try:
                grade = int(str(cells["grade"]))
            except ValueError:
                raise BadLine(source.name, number, f"the grade {cells['grade']!r} is not a whole number.") from None
            judgments.setdefault(str(cells["query_id"]), {})[str(cells["id"])] = grade
        except BadLine as problem:
            bad.add(problem)
    if not judgments:
        raise FileProblem(f"{path} holds no judgment.")
    return judgments


def _judged(source: Source, bad: BadLines) -> Any:
    if source.format in ("tsv", "csv", "jsonl", "ndjson", "json", "parquet"):
        for number, row in rows(source, QRELS, bad):
            yield number, QRELS.read(row)
        return
    for number, raw in source.lines():
        try:
            cells = decoded(source, number, raw).split()
            if len(cells) not in (0, 4):
                raise BadLine(source.name, number, f"has {len(cells)} columns; judgments have 4.")
            if cells:
                yield number, dict(zip(QRELS.positions[4], cells, strict=True))
        except BadLine as problem:
            bad.add(problem)


def load_run(path: str, bad: BadLines) -> dict[str, dict[str, float]]:
    """A run in memory. Raises FileProblem, and BadLine for a document that a query has twice."""
    source = Source(path)
    run: dict[str, dict[str, float]] = {}
    for hit in read_run(source, bad):
        documents = run.setdefault(hit.query, {})
        if hit.document in documents:
            bad.add(BadLine(source.name, hit.line, f"query {hit.query!r} has {hit.document!r} twice."))
            continue
        documents[hit.document] = hit.score
    if not run:
        raise FileProblem(f"{path} holds no document.")
    return run


def values(measures: Mapping[str, Any], judgments: Judgments, run: Run) -> dict[str, dict[str, float]]:
    """Each measure's value of each judged query; of a query that the run lacks, as of one with no document."""
    library = needed("ir_measures", "Measures", "eval")
    known = {query: dict(documents) for query, documents in run.items() if query in judgments}
    found: dict[str, dict[str, float]] = {name: {} for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for metric in library.iter_calc(list(measures.values()), judgments, known):
        found[names[metric.measure]][metric.query_id] = metric.value
    # In the library's order, so that means add up to its own to the last digit.
    return {name: per_query | dict.fromkeys(judgments.keys() - per_query, 0.0) for name, per_query in found.items()}


def mean(per_query: Mapping[str, float]) -> float:
    """As `ir-measures` has it: the sum over the number of judged queries."""
    return sum(per_query.values()) / len(per_query)


def fuse(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the runs that have it.

    Equal scores stand as in trec_eval within a run, and as first found in the fused one.
    """
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, documents in run.items():
            scores = fused.setdefault(query, {})
            for rank, document in enumerate(best_first(documents), 1):
                scores[document] = scores.get(document, 0.0) + 1 / (RRF_CONSTANT + rank)
    return {query: dict(sorted(scores.items(), key=lambda item: -item[1])) for query, scores in fused.items()}


def best_first(documents: Mapping[str, float]) -> list[str]:
    """A query's documents as trec_eval orders them: by falling score, equal ones by falling id."""
    return sorted(sorted(documents, reverse=True), key=lambda id: -documents[id])

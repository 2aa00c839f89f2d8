"""Judgments and runs, and measures of ranking quality for each query, computed by `ir-measures`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rerankd.core import RerankdError
from rerankd.core.counts import counted
from rerankd.rank.collection import RRF_CONSTANT
from rerankd.rank.files import BadLine, BadLines, FileProblem, Source, needed
from rerankd.rank.rows import Columns, decoded, rows
from rerankd.rank.runs import read_run

DEFAULT = ("nDCG@10", "RR@10", "AP", "R@100", "P@5", "Judged@10")
Judgments: TypeAlias = Mapping[str, Mapping[str, int]]
"""The grade of each judged document, by query and document."""
Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""The score of each ranked document, by query and document."""
Values: TypeAlias = Mapping[str, Mapping[str, float]]
"""The value of each measure, by measure and query."""
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
    """A measure is unknown, or cannot be computed."""


def parse(names: Sequence[str]) -> dict[str, Any]:
    """The measures of `ir-measures` with the given names, such as nDCG@10, by their normalised names.

    Raises MeasureError.
    """
    library = needed("ir_measures", "Measures", "eval")
    measures = {}
    for name in names:
        try:
            measure = library.parse_measure(name)
        except (NameError, ValueError, SyntaxError) as error:
            raise MeasureError(
                f"{name} is not a measure ({error}); examples are {', '.join(DEFAULT)} (see https://ir-measur.es)."
            ) from None
        if isinstance(cutoff := measure.params.get("cutoff"), int) and cutoff < 1:
            raise MeasureError(f"{name}: the cutoff {cutoff} is below 1; an example is nDCG@10.")
        try:
            library.evaluator([measure], {})
            measures[str(measure)] = measure
        except Exception as error:  # the libraries under ir-measures raise any kind
            raise MeasureError(
                f"{name} cannot be computed here ({_said(error)}); examples are {', '.join(DEFAULT)} "
                "(see https://ir-measur.es)."
            ) from None
    return measures


def _said(error: Exception) -> str:
    """The first sentence of a library's error, with its kind."""
    return f"{type(error).__name__}: {re.split(r'[.]? *$|[.] ', str(error), maxsplit=1, flags=re.MULTILINE)[0]}"


def read_judgments(path: str, bad: BadLines) -> dict[str, dict[str, int]]:
    """Read judgments from a file of TREC's format (4 columns) or BEIR's (TSV with a header), CSV, JSONL or Parquet.

    Raises FileProblem, and BadLine for a grade that is not an integer, and for a document with two grades.
    """
    source = Source(path)
    judgments: dict[str, dict[str, int]] = {}
    for number, cells in _judged(source, bad):
        try:
            missing = [name for name in ("query_id", "id", "grade") if cells.get(name) is None]
            if missing:
                raise BadLine(source.name, number, f"has no {missing[0]}.")
            grade = _grade(cells["grade"])
            if grade is None:
                raise BadLine(source.name, number, f"the grade {cells['grade']!r} is not an integer.")
            query, document = str(cells["query_id"]), str(cells["id"])
            first = judgments.setdefault(query, {}).setdefault(document, grade)
            if first != grade:
                raise BadLine(
                    source.name, number,
                    f"the query {query!r} has the document {document!r} twice, with the grades {first} and {grade}; "
                    "keep one.",
                )  # fmt: skip
        except BadLine as problem:
            bad.add(problem)
    if not judgments:
        raise FileProblem(f"{path} holds no judgments.")
    return judgments


def _grade(cell: object) -> int | None:
    """The grade; None for a cell that is no integer. pandas writes 1 as 1.0 if a cell of the column is missing."""
    try:
        return int(str(cell))
    except ValueError:
        pass
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _judged(source: Source, bad: BadLines) -> Any:
    if source.format in ("tsv", "csv", "jsonl", "ndjson", "json", "parquet"):
        for number, row in rows(source, QRELS, bad):
            yield number, QRELS.read(row)
        return
    for number, raw in source.lines():
        try:
            cells = decoded(source, number, raw).split()
            if len(cells) not in (0, 4):
                raise BadLine(source.name, number, f"has {counted(len(cells), 'column')}; judgments have 4.")
            if cells:
                yield number, dict(zip(QRELS.positions[4], cells, strict=True))
        except BadLine as problem:
            bad.add(problem)


def load_run(path: str, bad: BadLines) -> dict[str, dict[str, float]]:
    """Read a run. Raises FileProblem, and BadLine for a query with the same document twice."""
    source = Source(path)
    run: dict[str, dict[str, float]] = {}
    for hit in read_run(source, bad):
        documents = run.setdefault(hit.query, {})
        if hit.document in documents:
            bad.add(BadLine(source.name, hit.line, f"the query {hit.query!r} has the document {hit.document!r} twice."))
            continue
        documents[hit.document] = hit.score
    if not run:
        raise FileProblem(f"{path} holds no documents.")
    return run


def values(measures: Mapping[str, Any], judgments: Judgments, run: Run) -> dict[str, dict[str, float]]:
    """The value of each measure for each judged query. A query that is missing in the run counts 0.

    Raises MeasureError for a measure that fails on these documents.
    """
    library = needed("ir_measures", "Measures", "eval")
    judged = {query: dict(documents) for query, documents in run.items() if query in judgments}
    result: dict[str, dict[str, float]] = {name: {} for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for metric in _calculated(library, list(measures.values()), judgments, judged):
        result[names[metric.measure]][metric.query_id] = metric.value
    # The library's order of queries is kept, so that `mean` gives the library's mean to the last digit.
    return {name: per_query | dict.fromkeys(judgments.keys() - per_query, 0.0) for name, per_query in result.items()}


def _calculated(library: Any, measures: list[Any], judgments: Judgments, run: Run) -> list[Any]:
    try:
        return list(library.iter_calc(measures, judgments, run))
    except Exception as error:  # the libraries under ir-measures raise any kind
        for measure in measures if len(measures) > 1 else ():
            _calculated(library, [measure], judgments, run)
        raise MeasureError(
            f"{', '.join(map(str, measures))} cannot be computed from these judgments and runs ({_said(error)}); "
            "leave it out."
        ) from error


def mean(per_query: Mapping[str, float]) -> float:
    """The mean over all judged queries, as `ir-measures` computes it."""
    return sum(per_query.values()) / len(per_query)


def fuse(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Fuse runs by reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the runs that have it.

    Within a run, equal scores are ordered as trec_eval orders them. In the fused run, equal scores are ordered by their
    first appearance. Source: Cormack, Clarke and Buettcher (SIGIR 2009).
    """
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, documents in run.items():
            scores = fused.setdefault(query, {})
            for rank, document in enumerate(best_first(documents), 1):
                scores[document] = scores.get(document, 0.0) + 1 / (RRF_CONSTANT + rank)
    return {query: dict(sorted(scores.items(), key=lambda item: -item[1])) for query, scores in fused.items()}


def best_first(documents: Mapping[str, float]) -> list[str]:
    """A query's documents in the order of trec_eval: by falling score, and equal scores by falling id."""
    return sorted(sorted(documents, reverse=True), key=lambda id: -documents[id])

"""The results of an evaluation, and their rendering as text, Markdown and JSON. `page` renders a web page."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rerankd.core.counts import counted
from rerankd.evaluate.measures import Judgments, Run, Values, best_first, mean
from rerankd.evaluate.statistics import Difference, holm

SIGNIFICANT = 0.05
"""Differences with a smaller p are marked."""
TOP = 3
"""Number of documents that are shown for a bad query."""


@dataclass(frozen=True, slots=True)
class System:
    """A ranking and its name.

    documents_per_second: the speed of the model; None for a ranking that was read from a file
    documents: number of scored documents; None for a ranking that was read from a file
    """

    name: str
    run: Run
    documents_per_second: float | None = None
    documents: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A document of a query, as a system ranks it.

    rank: from 1; 0 if the system does not rank the document
    grade: None if the document is not judged
    text: None if no corpus was given
    """

    id: str
    rank: int
    grade: int | None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Worst:
    """A query on which a system has a low value.

    value: of the report's first measure
    difference: from the baseline's value; None for the baseline itself
    top: the first documents of the ranking
    best: the relevant document with the highest grade; None if no document is relevant
    """

    system: str
    query: str
    text: str | None
    value: float
    difference: float | None
    top: tuple[Hit, ...]
    best: Hit | None


@dataclass(frozen=True, slots=True)
class Report:
    """The results of systems on the same judgments. The first system is the baseline.

    values: by system, measure and query
    against: the difference from the baseline, by system (without the baseline) and measure; `p` is corrected for the
    number of all these differences
    worst: the queries with the lowest values
    texts: of queries, by id
    """

    measures: tuple[str, ...]
    systems: tuple[System, ...]
    judgments: Judgments
    values: Mapping[str, Values]
    against: Mapping[str, Mapping[str, Difference]]
    worst: tuple[Worst, ...] = ()
    notes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The name of the system to which the others are compared."""
        return self.systems[0].name

    def mean(self, system: str, measure: str) -> float:
        """The mean of a measure over all judged queries."""
        return mean(self.values[system][measure])

    @property
    def timed(self) -> bool:
        """Whether the speed of any system is known."""
        return any(system.documents_per_second is not None for system in self.systems)


def compare(
    measures: Sequence[str],
    systems: Sequence[System],
    judgments: Judgments,
    values: Mapping[str, Values],
    texts: Mapping[str, str],
    documents: Callable[[Container[str]], Mapping[str, str]],
    worst: int,
) -> Report:
    """Compare systems with the first of them.

    values: by system, measure and query
    texts: of queries, by id; may be incomplete
    documents: returns the known texts of the documents with some ids; called at most once
    worst: number of bad queries to show for each system
    """
    names = [system.name for system in systems]
    against = {
        name: {
            measure: Difference.of(
                *([values[system][measure][query] for query in judgments] for system in (name, names[0]))
            )
            for measure in measures
        }
        for name in names[1:]
    }
    places = [(name, measure) for name in against for measure in measures]
    corrected = holm([against[name][measure].p for name, measure in places])
    for (name, measure), p in zip(places, corrected, strict=True):
        against[name][measure] = replace(against[name][measure], p=p)
    notes = [note for system in systems for note in _notes(system, judgments)]
    compared = systems[1:] or systems
    without_texts = [
        query
        for system in compared
        for query in _worst(system, systems[0], measures[0], values, judgments, texts, worst)
    ]
    hits = {hit.id for query in without_texts for hit in (*query.top, *((query.best,) if query.best else ()))}
    bodies = documents(hits) if hits else {}

    def with_text(hit: Hit) -> Hit:
        return replace(hit, text=bodies.get(hit.id))

    shown_worst = tuple(
        replace(query, top=tuple(map(with_text, query.top)), best=query.best and with_text(query.best))
        for query in without_texts
    )
    return Report(tuple(measures), tuple(systems), judgments, values, against, shown_worst, tuple(notes), texts)


def _notes(system: System, judgments: Judgments) -> Iterable[str]:
    missing = len(judgments.keys() - system.run.keys())
    unjudged = len(system.run.keys() - judgments.keys())
    if missing:
        judged = counted(len(judgments), "judged query", "judged queries")
        yield f"{system.name} lacks {missing} of {judged}; each counts 0."
    if unjudged:
        yield f"{system.name} has {counted(unjudged, 'query', 'queries')} without judgments, not counted."


def _worst(
    system: System,
    baseline: System,
    measure: str,
    values: Mapping[str, Values],
    judgments: Judgments,
    texts: Mapping[str, str],
    count: int,
) -> Iterable[Worst]:
    by_query, baseline_values = values[system.name][measure], values[baseline.name][measure]
    for query in sorted(by_query, key=lambda id: (by_query[id], by_query[id] - baseline_values[id]))[:count]:
        grades = judgments[query]
        order = best_first(system.run.get(query, {}))
        top = [Hit(id, rank, grades.get(id)) for rank, id in enumerate(order[:TOP], 1)]
        relevant = [id for id, grade in grades.items() if grade > 0]
        place = {id: rank for rank, id in enumerate(order, 1)}
        best = min(relevant, key=lambda id: (-grades[id], place.get(id, len(place) + 1)), default=None)
        best_hit = None if best is None else Hit(best, place.get(best, 0), grades[best])
        difference = None if system is baseline else by_query[query] - baseline_values[query]
        yield Worst(system.name, query, texts.get(query), by_query[query], difference, tuple(top), best_hit)


def text(report: Report) -> str:
    """The report as text for a terminal."""
    lines = _aligned(_table(report))
    if report.against:
        lines += ["", _against(report)]
        lines += _aligned(_differences(report))
    lines += ["", *report.notes] if report.notes else []
    for query in report.worst:
        lines += ["", _heading(report, query)]
        lines += [f"  {_hit(hit)}" for hit in query.top]
        if query.best is not None:
            lines.append(f"  best judged: {_hit(query.best)}")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The report as Markdown, for an issue or a README."""
    lines = _piped(_table(report))
    if report.against:
        lines += ["", f"{_against(report)}:", ""]
        lines += _piped(_differences(report))
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    if report.worst:
        lines += ["", f"Lowest {report.measures[0]}:", ""]
        for query in report.worst:
            lines.append(f"- {_heading(report, query)}")
            lines += [f"  - {_hit(hit)}" for hit in query.top]
            if query.best is not None:
                lines.append(f"  - best judged: {_hit(query.best)}")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """The report as JSON, for programs."""
    systems = []
    for system in report.systems:
        entry: dict[str, Any] = {
            "name": system.name,
            "measures": {measure: report.mean(system.name, measure) for measure in report.measures},
        }
        if system.documents_per_second is not None:
            entry |= {"documents_per_second": system.documents_per_second, "documents": system.documents}
        if system.name in report.against:
            entry["against"] = {
                measure: {"difference": d.mean, "p": d.p, "wins": d.wins, "ties": d.ties, "losses": d.losses}
                for measure, d in report.against[system.name].items()
            }
        systems.append(entry)
    worst = [
        {
            "system": query.system,
            "query_id": query.query,
            "query": query.text,
            report.measures[0]: query.value,
            "difference": query.difference,
            "top": [_plain(hit) for hit in query.top],
            "best_judged": None if query.best is None else _plain(query.best),
        }
        for query in report.worst
    ]
    head = {"baseline": report.baseline, "queries": len(report.judgments), "systems": systems}
    return json.dumps({**head, "worst": worst, "notes": report.notes}, ensure_ascii=False, indent=2)


def per_query(report: Report) -> Iterable[str]:
    """A line of JSON for each judged query, with its values by system and measure."""
    for query in report.judgments:
        line: dict[str, Any] = {"query_id": query}
        if query in report.texts:
            line["query"] = report.texts[query]
        line["values"] = {
            system.name: {measure: report.values[system.name][measure][query] for measure in report.measures}
            for system in report.systems
        }
        yield json.dumps(line, ensure_ascii=False)


def _plain(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "rank": hit.rank or None, "grade": hit.grade, "text": hit.text}


def _table(report: Report) -> list[list[str]]:
    rows = [["", *report.measures, *(["documents/s", "s/query"] if report.timed else [])]]
    for system in report.systems:
        cells = [system.name]
        for measure in report.measures:
            value = f"{report.mean(system.name, measure):.4f}"
            change = report.against.get(system.name, {}).get(measure)
            if change is not None:
                value += f" {change.mean:+.4f}{'*' if change.p < SIGNIFICANT else ''}"
            cells.append(value)
        if report.timed:
            cells += speeds(report, system)
        rows.append(cells)
    return rows


def speeds(report: Report, system: System) -> list[str]:
    """Documents per second and seconds per query, as text; empty if the speed is unknown."""
    rate, documents = system.documents_per_second, system.documents
    if rate is None or not documents or not rate:
        return ["", ""]
    return [f"{rate:,.1f}", f"{documents / rate / max(1, len(system.run)):.3f}"]


def _differences(report: Report) -> list[list[str]]:
    rows = [["", "measure", "difference", "p", "wins", "ties", "losses"]]
    for name, by_measure in report.against.items():
        for measure, d in by_measure.items():
            rows.append([name, measure, f"{d.mean:+.4f}", shown_p(d.p), str(d.wins), str(d.ties), str(d.losses)])
    return rows


def shown_p(p: float) -> str:
    """A p value as text."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _against(report: Report) -> str:
    count = sum(map(len, report.against.values()))
    correction = f"Holm's correction for {count} test{'s' if count > 1 else ''}"
    return f"Against {report.baseline}; p from a paired randomisation test with {correction}, * below {SIGNIFICANT}"


def _heading(report: Report, worst: Worst) -> str:
    difference = "" if worst.difference is None else f" ({worst.difference:+.4f})"
    value = f"{report.measures[0]} {worst.value:.4f}{difference}"
    return f"{worst.system}, query {worst.query}: {value} {worst.text or ''}".rstrip()


def _hit(hit: Hit) -> str:
    place = f"{hit.rank}." if hit.rank else "not ranked:"
    grade = "not judged" if hit.grade is None else f"grade {hit.grade}"
    body = "" if hit.text is None else f" {shortened(hit.text)}"
    return f"{place} {hit.id} ({grade}){body}"


def shortened(text: str, limit: int = 160) -> str:
    """The beginning of a text, of at most `limit` characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _piped(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [_pipe(head), _pipe(["---"] * len(head)), *map(_pipe, body)]


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""The results of an evaluation, as text, Markdown or JSON. `page` writes them as a web page."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rerankd.evaluate.measures import Judgments, Run, Values, best_first, mean
from rerankd.evaluate.statistics import Difference, holm

SIGNIFICANT = 0.05
TOP = 3
"""Documents that are shown of a bad query."""


@dataclass(frozen=True, slots=True)
class System:
    """A ranking under its name. `documents_per_second` and `documents` are known where it was made here."""

    name: str
    run: Run
    documents_per_second: float | None = None
    documents: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a system ranks, its grade (None where nobody judged it) and its text, if that is at hand."""

    id: str
    rank: int
    grade: int | None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Worst:
    """A query that a system does badly at, with what it ranks first and where the best judged document is."""

    system: str
    query: str
    text: str | None
    value: float
    difference: float | None
    top: tuple[Hit, ...]
    best: Hit | None


@dataclass(frozen=True, slots=True)
class Report:
    """Systems, the first of which is what the others are compared with.

    values: of each system, by measure and query
    against: of each system but the first, by measure; `p` is corrected for all that are in it
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
        return self.systems[0].name

    def mean(self, system: str, measure: str) -> float:
        return mean(self.values[system][measure])

    @property
    def timed(self) -> bool:
        """Whether it is known how fast any system is."""
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
    """The report of systems whose values are known.

    texts: of queries, those that are at hand
    documents: gives the texts of documents, those that are at hand; asked once
    worst: how many queries are shown of each system
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
        found = against[name][measure]
        against[name][measure] = Difference(found.mean, p, found.wins, found.ties, found.losses)
    notes = [note for system in systems for note in _notes(system, judgments)]
    shown = systems[1:] or systems
    found_worst = [
        one for system in shown for one in _worst(system, systems[0], measures[0], values, judgments, texts, worst)
    ]
    hits = {hit.id for one in found_worst for hit in (*one.top, *((one.best,) if one.best else ()))}
    bodies = documents(hits) if hits else {}

    def with_text(hit: Hit) -> Hit:
        return replace(hit, text=bodies.get(hit.id))

    shown_worst = tuple(
        replace(one, top=tuple(map(with_text, one.top)), best=one.best and with_text(one.best)) for one in found_worst
    )
    return Report(tuple(measures), tuple(systems), judgments, values, against, shown_worst, tuple(notes), texts)


def _notes(system: System, judgments: Judgments) -> Iterable[str]:
    lacking = len(judgments.keys() - system.run.keys())
    beyond = len(system.run.keys() - judgments.keys())
    if lacking:
        yield f"{system.name} lacks {lacking} of the {len(judgments)} judged queries; each counts 0."
    if beyond:
        yield f"{system.name} has {beyond} queries that nobody judged; they do not count."


def _worst(
    system: System,
    baseline: System,
    measure: str,
    values: Mapping[str, Values],
    judgments: Judgments,
    texts: Mapping[str, str],
    count: int,
) -> Iterable[Worst]:
    own, other = values[system.name][measure], values[baseline.name][measure]
    same = system is baseline
    for query in sorted(own, key=lambda one: (own[one], own[one] - other[one]))[:count]:
        grades = judgments[query]
        order = best_first(system.run.get(query, {}))
        top = [Hit(id, rank, grades.get(id)) for rank, id in enumerate(order[:TOP], 1)]
        relevant = [id for id, grade in grades.items() if grade > 0]
        place = {id: rank for rank, id in enumerate(order, 1)}
        best = min(relevant, key=lambda id: (-grades[id], place.get(id, len(place) + 1)), default=None)
        found = None if best is None else Hit(best, place.get(best, 0), grades[best])
        difference = None if same else own[query] - other[query]
        yield Worst(system.name, query, texts.get(query), own[query], difference, tuple(top), found)


def text(report: Report) -> str:
    """For a terminal."""
    lines = _aligned(_table(report))
    if report.against:
        lines += [
            "",
            f"Against {report.baseline}; p by a paired randomisation test, Holm's correction of {_tests(report)}",
        ]
        lines += _aligned(_differences(report))
    lines += ["", *report.notes] if report.notes else []
    for one in report.worst:
        lines += ["", _heading(report, one)]
        lines += [f"  {_hit(hit)}" for hit in one.top]
        if one.best is not None:
            lines.append(f"  best judged: {_hit(one.best)}")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """For an issue or a README."""
    lines = _piped(_table(report))
    if report.against:
        lines += [
            "",
            f"Against {report.baseline}; p by a paired randomisation test, Holm's correction of {_tests(report)}:",
            "",
        ]
        lines += _piped(_differences(report))
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    if report.worst:
        lines += ["", f"Lowest {report.measures[0]}:", ""]
        for one in report.worst:
            lines.append(f"- {_heading(report, one)}")
            lines += [f"  - {_hit(hit)}" for hit in one.top]
            if one.best is not None:
                lines.append(f"  - best judged: {_hit(one.best)}")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """For programs."""
    systems = []
    for system in report.systems:
        one: dict[str, Any] = {
            "name": system.name,
            "measures": {measure: report.mean(system.name, measure) for measure in report.measures},
        }
        if system.documents_per_second is not None:
            one |= {"documents_per_second": system.documents_per_second, "documents": system.documents}
        if system.name in report.against:
            one["against"] = {
                measure: {"difference": d.mean, "p": d.p, "wins": d.wins, "ties": d.ties, "losses": d.losses}
                for measure, d in report.against[system.name].items()
            }
        systems.append(one)
    worst = [
        {
            "system": one.system,
            "query_id": one.query,
            "query": one.text,
            report.measures[0]: one.value,
            "difference": one.difference,
            "top": [_plain(hit) for hit in one.top],
            "best_judged": None if one.best is None else _plain(one.best),
        }
        for one in report.worst
    ]
    told = {"baseline": report.baseline, "queries": len(report.judgments), "systems": systems}
    return json.dumps({**told, "worst": worst, "notes": report.notes}, ensure_ascii=False, indent=2)


def per_query(report: Report) -> Iterable[str]:
    """A JSON line for each judged query: its values by system and measure."""
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
    rows = [["", *report.measures, *(["documents/s", "s a query"] if report.timed else [])]]
    for system in report.systems:
        cells = [system.name]
        for measure in report.measures:
            value = f"{report.mean(system.name, measure):.4f}"
            found = report.against.get(system.name, {}).get(measure)
            cells.append(value if found is None else f"{value} {found.mean:+.4f}{'*' if found.p < SIGNIFICANT else ''}")
        if report.timed:
            cells += speeds(report, system)
        rows.append(cells)
    return rows


def speeds(report: Report, system: System) -> list[str]:
    """Documents a second, and seconds a query, as they are shown."""
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
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _tests(report: Report) -> str:
    count = sum(map(len, report.against.values()))
    return f"{count} test{'s' if count > 1 else ''}, * below {SIGNIFICANT}"


def _heading(report: Report, one: Worst) -> str:
    apart = "" if one.difference is None else f" ({one.difference:+.4f})"
    return f"{one.system}, query {one.query}: {report.measures[0]} {one.value:.4f}{apart} {one.text or ''}".rstrip()


def _hit(hit: Hit) -> str:
    place = f"{hit.rank}." if hit.rank else "not ranked:"
    grade = "not judged" if hit.grade is None else f"grade {hit.grade}"
    body = "" if hit.text is None else f" {shortened(hit.text)}"
    return f"{place} {hit.id} ({grade}){body}"


def shortened(text: str, characters: int = 160) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _piped(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [_pipe(head), _pipe(["---"] * len(head)), *map(_pipe, body)]


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""A report as one web page: charts drawn as SVG, nothing from anywhere else, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from rerankd.evaluate.report import SIGNIFICANT, Report, shortened, shown_p, speeds

WIDTH, ROW, MARGIN = 640, 26, 8
PLOT_HEIGHT = 280


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart in pixels, and what it says."""

    x: float
    y: float
    width: float
    label: str
    value: str
    wins: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """A system among quality and speed, in pixels. `left` has its label stand before it."""

    x: float
    y: float
    label: str
    title: str
    left: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, in pixels."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Quality against what it costs."""

    title: str
    axis: str
    points: Sequence[Point]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def page(report: Report) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        report=report,
        charts=[(measure, means(report, measure)) for measure in report.measures],
        queries=[(system.name, by_query(report, system.name)) for system in report.systems[1:]],
        plots=plots(report),
        significant=SIGNIFICANT,
        shown_p=shown_p,
        shortened=shortened,
        speeds=speeds,
        width=WIDTH,
        row=ROW,
        height=PLOT_HEIGHT,
        margin=MARGIN,
    )


def means(report: Report, measure: str) -> list[Bar]:
    """A measure's mean of each system, as bars from 0 to 1 (or to the largest)."""
    values = [report.mean(system.name, measure) for system in report.systems]
    longest = max(1.0, *values)
    return [
        Bar(0, place * ROW, WIDTH * value / longest, system.name, f"{value:.4f}")
        for place, (system, value) in enumerate(zip(report.systems, values, strict=True))
    ]


def by_query(report: Report, name: str) -> list[Bar]:
    """How far each query's value lies from the baseline's, the largest gain first; heights in place of widths."""
    measure = report.measures[0]
    own, other = report.values[name][measure], report.values[report.baseline][measure]
    apart = sorted(((own[query] - other[query], query) for query in own), reverse=True)
    step = WIDTH / max(1, len(apart))
    longest = max(1.0, *(abs(difference) for difference, _ in apart))
    return [
        Bar(
            x=place * step,
            y=100 - 100 * max(0.0, difference) / longest,
            width=100 * abs(difference) / longest,
            label=f"{query} {report.texts.get(query, '')}".strip(),
            value=f"{difference:+.4f}",
            wins=difference >= 0,
        )
        for place, (difference, query) in enumerate(apart)
    ]


def plots(report: Report) -> list[Plot]:
    """The first measure against documents a second, and against seconds a query, of the systems that were timed."""
    timed = [one for one in report.systems if one.documents_per_second and one.documents]
    if not timed:
        return []
    measure = report.measures[0]
    quality = [report.mean(one.name, measure) for one in timed]
    rates = [one.documents_per_second or 1.0 for one in timed]
    seconds = [(one.documents or 0) / rate / max(1, len(one.run)) for one, rate in zip(timed, rates, strict=True)]
    names = [one.name for one in timed]
    return [
        _plot(f"{measure} against documents a second", "documents/s", names, rates, quality),
        _plot(f"{measure} against seconds a query", "seconds a query", names, seconds, quality),
    ]


def _plot(title: str, axis: str, names: Sequence[str], across: Sequence[float], up: Sequence[float]) -> Plot:
    left, right, top, bottom = 52.0, WIDTH - 16.0, 16.0, PLOT_HEIGHT - 40.0
    x_low, x_high = 0.0, max(across) * 1.1
    y_low, y_high = _bounds(up)

    def x(value: float) -> float:
        return left + (right - left) * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_low) / (y_high - y_low)

    points = [
        Point(x(a), y(u), name, f"{name}: {u:.4f} at {a:,.3g} {axis}", x(a) > WIDTH / 2)
        for name, a, u in zip(names, across, up, strict=True)
    ]
    return Plot(
        title,
        axis,
        points,
        [Tick(x(value), f"{value:,.6g}") for value in ticks(x_low, x_high)],
        [Tick(y(value), f"{value:.4g}") for value in ticks(y_low, y_high)],
    )


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Around the values, so that equal ones do not lie on an axis."""
    low, high = min(values), max(values)
    margin = max(0.2 * (high - low), 0.005)
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """Some round numbers between two."""
    rough = (high - low) / 5
    scale = 10 ** math.floor(math.log10(rough))
    step = next(one * scale for one in (1, 2, 5, 10) if one * scale >= rough)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

"""A report as one self-contained web page: charts are SVG, and there are no scripts and no external files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from rerankd.evaluate.report import SIGNIFICANT, Report, shortened, shown_p, speeds

WIDTH, ROW, MARGIN = 640, 26, 8
PLOT_HEIGHT = 280
"""Sizes are in pixels."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart, in pixels.

    width: the length of a horizontal bar; the height of a vertical bar
    value: the value as text
    wins: whether the value is not below the baseline's
    """

    x: float
    y: float
    width: float
    label: str
    value: str
    wins: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """A system in a plot, in pixels.

    title: the text of the tooltip
    left: whether the label is to the left of the point
    """

    x: float
    y: float
    label: str
    title: str
    left: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, `at` so many pixels from the left or the top."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of quality against speed. `axis` labels the horizontal axis."""

    title: str
    axis: str
    points: Sequence[Point]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def page(report: Report) -> str:
    """The page as HTML."""
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
    """Horizontal bars: the mean of a measure for each system. The full width is 1, or a mean that is above 1."""
    values = [report.mean(system.name, measure) for system in report.systems]
    longest = max(1.0, *values)
    return [
        Bar(0, place * ROW, WIDTH * value / longest, system.name, f"{value:.4f}")
        for place, (system, value) in enumerate(zip(report.systems, values, strict=True))
    ]


def by_query(report: Report, name: str) -> list[Bar]:
    """Vertical bars with each query's difference from the baseline in the first measure, the largest gain first."""
    measure = report.measures[0]
    values, baseline = report.values[name][measure], report.values[report.baseline][measure]
    differences = sorted(((values[query] - baseline[query], query) for query in values), reverse=True)
    step = WIDTH / max(1, len(differences))
    longest = max(1.0, *(abs(difference) for difference, _ in differences))
    return [
        Bar(
            x=place * step,
            y=100 - 100 * max(0.0, difference) / longest,
            width=100 * abs(difference) / longest,
            label=f"{query} {report.texts.get(query, '')}".strip(),
            value=f"{difference:+.4f}",
            wins=difference >= 0,
        )
        for place, (difference, query) in enumerate(differences)
    ]


def plots(report: Report) -> list[Plot]:
    """Plots of the first measure against documents/s and against seconds per query, for systems with a known speed."""
    timed = [system for system in report.systems if system.documents_per_second and system.documents]
    if not timed:
        return []
    measure = report.measures[0]
    quality = [report.mean(system.name, measure) for system in timed]
    rates = [system.documents_per_second or 1.0 for system in timed]
    seconds = [
        (system.documents or 0) / rate / max(1, len(system.run)) for system, rate in zip(timed, rates, strict=True)
    ]
    names = [system.name for system in timed]
    return [
        _plot(f"{measure} against documents per second", "documents/s", names, rates, quality),
        _plot(f"{measure} against seconds per query", "seconds per query", names, seconds, quality),
    ]


def _plot(title: str, axis: str, names: Sequence[str], x_values: Sequence[float], y_values: Sequence[float]) -> Plot:
    left, right, top, bottom = 52.0, WIDTH - 16.0, 16.0, PLOT_HEIGHT - 40.0
    x_low, x_high = 0.0, max(x_values) * 1.1
    y_low, y_high = _bounds(y_values)

    def x(value: float) -> float:
        return left + (right - left) * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_low) / (y_high - y_low)

    points = [
        Point(x(a), y(u), name, f"{name}: {u:.4f} at {a:,.3g} {axis}", x(a) > WIDTH / 2)
        for name, a, u in zip(names, x_values, y_values, strict=True)
    ]
    return Plot(
        title,
        axis,
        points,
        [Tick(x(value), f"{value:,.6g}") for value in ticks(x_low, x_high)],
        [Tick(y(value), f"{value:.4g}") for value in ticks(y_low, y_high)],
    )


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The range of the vertical axis, with a margin so that no point lies on the edge, even if all values are equal."""
    low, high = min(values), max(values)
    margin = max(0.2 * (high - low), 0.005)
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

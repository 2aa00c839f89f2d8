"""The bar chart of a comparison, for the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import program
from benchmarks.checkpoints import PUBLISHED

OURS, THEIRS = "#1f6f8b", "#b8bec4"


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel a case: documents a second of each engine, its range, and the limit at rerankd's own precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = results["cases"]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    height = 0.9 + 0.32 * max(len(case["engines"]) for case in cases)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.4 * columns, height * rows), squeeze=False)
    panels = list(axes.flat)
    for panel in panels[len(cases) :]:
        panel.axis("off")
    for panel, case in zip(panels, cases, strict=False):
        names = list(case["engines"])[::-1]
        rates = [case["engines"][name]["documents_per_second"] for name in names]
        medians = [rate["median"] for rate in rates]
        ranges = [[m - rate["min"] for m, rate in zip(medians, rates, strict=True)],
                  [rate["max"] - m for m, rate in zip(medians, rates, strict=True)]]  # fmt: skip
        colours = [OURS if name.startswith("rerankd") else THEIRS for name in names]
        panel.barh(names, medians, xerr=ranges, color=colours, error_kw={"elinewidth": 0.8, "ecolor": "#555555"})
        limit = case["engines"][names[-1]]["limit_documents_per_second"]["median"]
        panel.axvline(limit, color="#555555", linestyle=":", linewidth=1)
        panel.set_xlim(0, 1.18 * max(limit, *(rate["max"] for rate in rates)))
        for place, (median, rate) in enumerate(zip(medians, rates, strict=True)):
            label = f"{float(f'{median:.3g}'):g}"
            panel.annotate(label, (rate["max"], place), xytext=(4, 0), textcoords="offset points",
                           va="center", fontsize=8)  # fmt: skip
        shape = PUBLISHED.get(case["model"], case["model"]).split("/")[-1]
        panel.set_title(f"{shape}, {case['workload'].replace(':', ' x ')}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    about = results["machine"]
    figure.suptitle(
        f"Documents/s, median and range of {results['rounds']} rounds; {about['processor']}, {about['cores']} cores\n"
        "dotted: the limit that matrix products set at rerankd's precision",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = program.parser("chart", __doc__)
    parser.add_argument("results", type=Path, help="JSON file of benchmarks.compare; the chart is put beside it")
    given = parser.parse_args()
    draw(json.loads(given.results.read_text()), given.results.with_suffix(".png"))

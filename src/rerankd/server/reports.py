"""Headers of an answer that report deviations from the request."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rerankd.core import RerankResult, seconds_by_stage
from rerankd.server.dialects.base import Call

log = logging.getLogger("rerankd")

HEADER_LIMIT = 2000


def reports(call: Call[Any], results: Sequence[RerankResult], id: str) -> dict[str, str]:
    """Headers that report cuts, documents left out, fields without effect or with less than asked, the windows of a
    listwise model, and the seconds of each stage.

    Lines of the log name the call by `id`.
    """
    headers = {}
    ignored = [*call.ignored, *dict.fromkeys(call.word(name) for result in results for name in result.ignored)]
    if ignored:
        headers["X-Rerankd-Ignored"] = _listed(ignored)
        log.info("%r: no effect here, or less than asked: %s", id, headers["X-Rerankd-Ignored"])
    if cut := list(_truncated(call, results)):
        headers["X-Rerankd-Truncated"] = "; ".join(cut)
        log.info("%r: cut to fit: %s", id, headers["X-Rerankd-Truncated"])
    if failed := list(_failed(call, results)):
        headers["X-Rerankd-Failed"] = _listed(failed)
        log.info("%r: left out: %s", id, headers["X-Rerankd-Failed"])
    if below := list(_below(call, results)):
        headers["X-Rerankd-Below-Min-Score"] = below[0]
        log.info("%r: below the lowest score that is wanted: %s", id, below[0])
    if windows := [str(result.windows) for result in results if result.windows > 1]:
        headers["X-Rerankd-Windows"] = _listed(windows)
        log.info("%r: prompts that each held some of the documents: %s", id, headers["X-Rerankd-Windows"])
    if took := seconds_by_stage(stage for result in results for stage in result.stages):
        headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in took.items())
    return headers


def _truncated(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    for number, result in enumerate(results):
        if result.query_truncated:
            yield call.in_body("query", number)
    places = {call.place(number, index) for number, result in enumerate(results) for index in result.truncated}
    if places:
        yield f"documents {_listed(_ranges(sorted(places)))}"


def _below(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    places = {call.place(number, index) for number, result in enumerate(results) for index in result.below_min_score}
    if places:
        yield f"documents {_listed(_ranges(sorted(places)))}"


def _failed(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    for number, result in enumerate(results):
        for _, error in sorted(result.failed.items()):
            yield f"{call.word(call.in_body(error.field, number))}: {error.problem}"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """[0, 1, 2, 5] as ["0-2", "5"]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ["-".join(map(str, run)) for run in runs]


def _listed(items: Sequence[str]) -> str:
    """Items as a header's value: in ASCII, and no longer than a proxy passes on."""
    text = ""
    for place, item in enumerate(items):
        printable = item if re.fullmatch(r"[\w.\[\]-]+", item, re.ASCII) else json.dumps(item)
        if len(text) + len(printable) > HEADER_LIMIT:
            return f"{text}, and {len(items) - place} more".removeprefix(", ")
        text += f"{', ' if text else ''}{printable}"
    return text

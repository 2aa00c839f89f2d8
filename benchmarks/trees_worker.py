"""Times the requests of `benchmarks.trees` with the rerankd that is imported: one process for each source tree.

It imports of a tree only names that users import, since trees may be old. Lines of JSON come in: first the model and
its options, then the requests of one turn after another. Each line is answered by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from statistics import median
from typing import Any

import rerankd


def turn(reranker: rerankd.Reranker, requests: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Seconds of each request, CPU seconds of a request, and median seconds of each stage and of the time in none."""
    seconds: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)
    began = time.process_time()
    for query, documents in requests:
        start = time.perf_counter()
        result = reranker.rerank(query, documents, show_progress=False)
        seconds.append(time.perf_counter() - start)
        took: dict[str, float] = defaultdict(float)
        for stage in result.stages:
            took[stage.name] += stage.seconds
        took["rest"] = seconds[-1] - sum(took.values())
        for name, value in took.items():
            stages[name].append(value)
    cpu = (time.process_time() - began) / len(requests)
    return {"seconds": seconds, "cpu": cpu, "stages": {name: median(values) for name, values in stages.items()}}


def main() -> None:
    """Answer lines until there are no more."""
    model, options = json.loads(sys.stdin.readline())
    with rerankd.Reranker(model, **options) as reranker:
        print(json.dumps(rerankd.__file__), flush=True)
        for line in sys.stdin:
            print(json.dumps(turn(reranker, json.loads(line))), flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()

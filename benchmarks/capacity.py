"""The model of `rerankd bench capacity`, fitted to one replica, beside several replicas that were measured.

usage: python -m benchmarks.capacity MODEL [--replicas 2] [--workload short] [--seconds 20] [--output FILE] [-- FLAGS]

One replica of one thread is measured, and the model fitted to it. Then REPLICAS of one thread each behind one port are
measured at the same shares of their highest rate; the model's latencies beside them are of the one replica's figures
alone. FLAGS, as `--dtype bfloat16`, are for both servers.

Run it on a machine that does nothing else. The server's own process and the clients run on the same cores, so that
replicas on all cores have less of them than the one replica had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from rerankd.bench import apis, load
from rerankd.bench.capacity import Measured, measure
from rerankd.bench.planning import compared, table
from rerankd.bench.samples import Sample
from rerankd.bench.started import started
from rerankd.bench.workloads import Corpus, Workload

REQUESTS = 400


def measured(model: str, replicas: int, samples: list[Sample], seconds: float, flags: list[str]) -> Measured:
    """A server of its own, of so many replicas of one thread."""
    api = apis.APIS["vllm-rerank"]
    own = ("--served-model-name", model, "--data-parallel-size", str(replicas), "--num-threads", "1", *flags)
    print(f"{replicas} replicas:", file=sys.stderr)
    with started(model, *own) as server:
        target = load.Target(api, f"{server.url}{api.endpoint}", model)
        return asyncio.run(
            measure(target, f"{server.url}/metrics", samples, seconds, lambda line: print(f"  {line}", file=sys.stderr))
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=(__doc__ or "").splitlines()[0])
    parser.epilog = "Flags of `rerankd serve` for both servers stand behind --."
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--workload", type=Workload.parse, default=Workload.parse("short"))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of some ten measurements of a server")
    parser.add_argument("--output", type=Path)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, flags = parser.parse_args(words[:end]), words[end + 1 :]
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    corpus = Corpus(0)
    samples = [Sample(*corpus.request(given.workload)) for _ in range(REQUESTS)]
    one, several = (measured(given.model, count, samples, given.seconds, flags) for count in (1, given.replicas))
    print(table(one))
    print(f"{given.replicas} replicas, and the model of the one:")
    print("\n".join(compared(one, several.levels, given.replicas)))
    if given.output:
        given.output.write_text(json.dumps({"one": one.json(), "several": several.json()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

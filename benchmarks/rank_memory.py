"""How the memory of `rerankd rank` grows with what it has ranked.

usage: python -m benchmarks.rank_memory MODEL [--documents 1000000] [--queries 10000] [--seconds 600]

A corpus of random words is made, and a first run of 100 documents for each query. Once every ten seconds the resident
memory of the command is printed, with the documents that it has scored.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

DEPTH, WORDS = 100, 60


def make(folder: Path, documents: int, queries: int) -> None:
    """corpus.jsonl, queries.jsonl and first.trec."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(5000)]
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(documents):
            file.write(json.dumps({"_id": f"d{number}", "text": " ".join(random.choices(words, k=WORDS))}) + "\n")
    with (folder / "queries.jsonl").open("w") as file, (folder / "first.trec").open("w") as run:
        for number in range(queries):
            file.write(json.dumps({"_id": f"q{number}", "text": " ".join(random.choices(words, k=6))}) + "\n")
            for rank, found in enumerate(random.sample(range(documents), DEPTH)):
                run.write(f"q{number} Q0 d{found} {rank + 1} {DEPTH - rank} first\n")


def main() -> None:
    """Print the memory over time."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rank_memory", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.documents, given.queries)
        command = [sys.executable, "-m", "rerankd", "rank", given.model, "--top-k", str(DEPTH)]
        for flag, file in (("queries", "queries.jsonl"), ("corpus", "corpus.jsonl"), ("run", "first.trec")):
            command += [f"--{flag}", str(folder / file)]
        told = folder / "told"
        with told.open("w") as file:
            process = subprocess.Popen([*command, "-o", str(folder / "out.trec")], stderr=file)
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < given.seconds:
            time.sleep(10)
            status = Path(f"/proc/{process.pid}/status")
            held = re.search(r"VmRSS:\s+(\d+) kB", status.read_text() if status.exists() else "")
            done = re.findall(r"(\d+)/\d+ \[", told.read_text())
            if held:
                print(f"{int(held[1]) >> 10} MB, {done[-1] if done else 0} documents", flush=True)
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()

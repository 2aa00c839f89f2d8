"""The memory of `rerankd rank` while it ranks a million documents.

usage: python -m benchmarks.rank_memory MODEL [--form run|pairs|rows|corpus] [--documents 1000000] [--depth 100]
       [--words 60] [--seconds 3600] [-- FLAGS OF rerankd rank]

Documents of random words are made, and ranked in one of these forms:
    run: queries, a corpus and a first run of DEPTH documents for each query, so many of them as make DOCUMENTS
    pairs: a line of JSON for each query, with its DEPTH documents
    rows: a pair a row (TSV), all of one query
    corpus: one query against the whole corpus, without a run

MODEL may be `none`: a server of this process then makes up the scores, so that a million documents take minutes.

Once every ten seconds the resident memory of the command is printed with its progress, and at the end the highest,
beside that of a command that ranks one document with the same model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import program

SECONDS = 10.0
Texts = Callable[[int], str]


def texts() -> Texts:
    """A function that gives a text of so many words."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(5000)]
    return lambda count: " ".join(random.choices(words, k=count))


def write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)


def make(folder: Path, form: str, documents: int, depth: int, words: int) -> list[str]:
    """The files of a form, and the arguments that name them."""
    text, random = texts(), Random(1)
    queries = max(1, documents // depth)
    if form == "pairs":
        made = ({"query": text(6), "documents": [text(words) for _ in range(depth)]} for _ in range(queries))
        write(folder / "pairs.jsonl", map(json.dumps, made))
        return [str(folder / "pairs.jsonl")]
    if form == "rows":
        query = text(6)
        write(folder / "pairs.tsv", (f"q\td{number}\t{query}\t{text(words)}" for number in range(documents)))
        return [str(folder / "pairs.tsv")]
    queries = 1 if form == "corpus" else queries
    write(folder / "corpus.tsv", (f"d{number}\t{text(words)}" for number in range(documents)))
    write(folder / "queries.tsv", (f"q{number}\t{text(6)}" for number in range(queries)))
    arguments = ["--queries", str(folder / "queries.tsv"), "--corpus", str(folder / "corpus.tsv")]
    if form == "corpus":
        return arguments
    hits = (
        f"q{number} Q0 d{found} {rank} {depth - rank} first"
        for number in range(queries)
        for rank, found in enumerate(random.sample(range(documents), depth))
    )
    write(folder / "first.trec", hits)
    return [*arguments, "--run", str(folder / "first.trec")]


class MadeUp(BaseHTTPRequestHandler):
    """TEI's API with scores that depend on the texts alone."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(404, {})

    def do_POST(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
        scores = [{"index": place, "score": zlib.crc32(text.encode()) / 2**32} for place, text in enumerate(found)]
        self.answer(200, scores)

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def scored_by(model: str) -> Iterator[list[str]]:
    """The arguments of `rerankd rank` that say who scores."""
    if model != "none":
        yield [model]
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), MadeUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ["made-up", "--server", f"http://127.0.0.1:{server.server_port}", "--api", "tei"]
        server.shutdown()


def highest(command: list[str], folder: Path, seconds: float, show: bool) -> int:
    """Bytes that a command holds at most; it is stopped after so many seconds."""
    told = folder / "told"
    with told.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    began, shown = time.monotonic(), time.monotonic()
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        now = time.monotonic()
        if now - began > seconds:
            process.terminate()
        elif show and now - shown > SECONDS:
            shown = now
            held = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            done = re.findall(r"(\d+)/\d+ \[|([\d,]+) documents, ", told.read_text())
            documents = next(filter(None, done[-1])) if done else "0"
            print(f"{int(held[1]) / 1e3 if held else 0:.0f} MB, {documents} documents", flush=True)
        time.sleep(0.2)
    if show or process.returncode:
        print(told.read_text().replace("\r", "\n").splitlines()[-1], flush=True)
    return 1024 * int(used.ru_maxrss)


def main() -> None:
    """Print the memory over time, and the highest."""
    parser = program.parser("rank_memory", __doc__)
    parser.add_argument("model")
    parser.add_argument("--form", choices=("run", "pairs", "rows", "corpus"), default="run")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--words", type=int, default=60, help="words of a document")
    parser.add_argument("--seconds", type=float, default=3600.0)
    given, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name, scored_by(given.model) as model:
        folder = Path(name)
        command = [sys.executable, "-m", "rerankd", "rank", *model, *(flag for flag in flags if flag != "--")]
        (folder / "one.jsonl").write_text('{"query": "a", "documents": ["b"]}\n')
        one = highest([*command, str(folder / "one.jsonl"), "-o", str(folder / "one.trec")], folder, 600, False)
        files = make(folder, given.form, given.documents, given.depth, given.words)
        everything = highest([*command, *files, "-o", str(folder / "out.trec")], folder, given.seconds, True)
        print(f"at most {everything / 1e6:.0f} MB; of one document alone {one / 1e6:.0f} MB")


if __name__ == "__main__":
    program.run(main)

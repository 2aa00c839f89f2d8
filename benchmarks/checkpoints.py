"""Random checkpoints in the sizes of published rerankers, for measuring without a download.

usage: python -m benchmarks.checkpoints FOLDER [name ...]

`tests/checkpoints.py` makes them; it needs the test extras. What is there already is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import program

PUBLISHED = {
    "qwen3-0.6b": "Qwen/Qwen3-Reranker-0.6B",
    "xlmr-m3": "BAAI/bge-reranker-v2-m3",
    "bert-minilm": "cross-encoder/ms-marco-MiniLM-L6-v2",
}
"""The checkpoints of `compare.py`, and whose shape each has."""


def checkpoint(root: Path, name: str) -> Path:
    """The folder of a checkpoint, made first where it is missing."""
    folder = root / name
    if not (folder / "tokenizer.json").exists():
        from tests.checkpoints import NAMED

        print(f"making {folder}, of the shape of {PUBLISHED.get(name, name)}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        NAMED[name](folder)
    return folder


if __name__ == "__main__":
    parser = program.parser("checkpoints", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*PUBLISHED], metavar="name")
    given = parser.parse_args()
    from tests.checkpoints import NAMED

    if unknown := [wanted for wanted in given.names if wanted not in NAMED]:
        parser.error(f"there is no checkpoint {unknown[0]}; the names are {', '.join(NAMED)}")
    for wanted in given.names:
        checkpoint(given.folder, wanted)

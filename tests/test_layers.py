"""Arrows point down: which part of the source may import which, for every import of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rerankd

SOURCE = Path(rerankd.__file__).parent
LAYERS = (
    ("version",),
    ("core",),
    ("compute_thread", "contents", "limits", "memory", "threads", "windows"),
    ("work",),
    ("layers", "media", "schemas"),
    ("backends", "models", "compat"),
    ("engine", "prompts", "options"),
    ("parallel",),
    ("loading",),
    ("follower", "replica", "starting", "inspection", "preparing", "progress", "ranking", "arguments"),
    ("data_frames", "pooling"),
    ("request_reranker",),
    ("reranker",),
    ("cross_encoder", "llm"),
    ("server",),
    ("rank",),
    ("evaluate", "bench"),
    ("cli",),
    ("ray",),
    ("launch_server", "__main__", "__init__"),
)
"""From the lowest; parts of one layer import nothing of each other."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """The part of a module of ours: `rerankd.core.errors` is of `core`."""
    return [*module.split("."), "__init__"][1]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        inner = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(("rerankd", *inner)).removesuffix(".__init__"), path


def imported(source: str) -> Iterator[str]:
    """The modules of ours that a source imports, wherever it does so, for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "rerankd")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "rerankd":
                yield from (f"rerankd.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("rerankd."):
                yield node.module


def wrong(importer: str, module: str) -> bool:
    above, below = part_of(importer), part_of(module)
    return above != below and LEVEL.get(below, len(LAYERS)) >= LEVEL[above]


def test_every_import_goes_down() -> None:
    found = [(name, other) for name, path in modules() for other in imported(path.read_text("utf-8"))]
    assert len(found) > 1000, "the source was not read"
    assert not [f"{name} imports {other}" for name, other in found if wrong(name, other)]


@pytest.mark.parametrize(
    ("importer", "line", "is_wrong"),
    [
        ("rerankd.models.bert", "from rerankd.backends.base import Backend", True),
        ("rerankd.models.bert", "def load():\n    import rerankd.backends.cpu.native", True),
        ("rerankd.backends.select", "from rerankd.models import registry", True),
        ("rerankd.llm", "from rerankd.cli.options import quantization", True),
        ("rerankd.server.app", "from rerankd.rank.batch import run_batch", True),
        ("rerankd.core.batch", "from rerankd import work", True),
        ("rerankd.models.bert", "from rerankd.layers.spec import TransformerSpec", False),
        ("rerankd.models.bert", "import torch\nfrom rerankd.models.stack import Stack", False),
        ("rerankd.cli.main", "from rerankd.server.run import bind", False),
    ],
)
def test_a_wrong_import_is_found(importer: str, line: str, is_wrong: bool) -> None:
    assert any(wrong(importer, module) for module in imported(line)) is is_wrong


def test_every_part_has_a_layer() -> None:
    assert {part_of(name) for name, _ in modules()} == LEVEL.keys()

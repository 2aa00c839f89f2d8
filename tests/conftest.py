"""Checkpoints for every test, each built once a session, when the first test asks for it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import md5
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, normalizers

from rerankd.backends.cpu.native import Kernels
from rerankd.prompts import tokenizer
from tests import checkpoints, vocabularies
from tests.watch import watched

# Kernels for GPUs run in an interpreter. Triton reads this when a kernel is defined.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A test of a property is as slow as the machine at that moment.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
settings.register_profile("fast", max_examples=10)

collect_ignore = ["clients", "authors", *([] if "RERANKD_TEST_DIST" in os.environ else ["wheel"])]
"""Real clients, the packages of rerankers' authors and what users install have environments and commands of their own:
`make test-clients`, `make test-authors`, `make test-wheel`."""

MakeCheckpoint: TypeAlias = Callable[..., Path]


SERVERS = ("server/", "cli/", "bench/", "rank/", "evaluate/", "parallel/", "ray/")
"""Folders whose tests start servers and commands."""
EMULATED = ("backends/cuda/",)
SLOW = (
    "deploy/test_chart.py", "media/test_fetch.py", "media/test_fetch_bodies.py", "media/test_golden.py",
    "media/test_loader.py", "media/test_loader_ends.py", "media/test_memory.py", "media/test_videos.py",
    "models/test_hub.py", "prompts/test_memory.py", "test_memory.py", "test_real_weights.py", "test_vision_prompts.py",
)  # fmt: skip
"""Files whose tests take seconds each."""
HEAVY = ("transformers", "sentence_transformers", "tests.references", "tests.checkpoints", "tests.vision")
"""Modules of other implementations, and of checkpoints."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files of which `-m "not reference and not server"` leaves out every test: imports take longest."""
    wanted: str = config.getoption("markexpr")
    if collection_path.suffix != ".py" or " or " in wanted:
        return None
    return True if _marks(collection_path) & {*re.findall(r"not (\w+)", wanted)} else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test-fast` leaves out: see the markers in pyproject.toml."""
    for item in items:
        for mark in _marks(item.path):
            item.add_marker(mark)
        if any("checkpoint" in name or "reference" in name for name in getattr(item, "fixturenames", ())):
            item.add_marker("reference")


@cache
def _marks(path: Path) -> frozenset[str]:
    """The marks of all tests of a file, by its folder and by the modules that it imports."""
    name = path.relative_to(Path(__file__).parent).as_posix()
    marks = {
        "server": name.startswith(SERVERS),
        "emulator": name.startswith(EMULATED),
        "slow": name in SLOW,
        "reference": any(module.startswith(HEAVY) or "_checkpoints" in module for module in _imported(path)),
    }
    return frozenset(mark for mark, holds in marks.items() if holds)


def _imported(path: Path) -> Iterator[str]:
    """The modules that a file imports when it is imported, and the names from them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="session", autouse=True)
def recording_is_watched() -> Iterator[None]:
    """What torch does to tensors of recorded operations before they are computed is an error in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernels, "recorded", watched(Kernels.recorded))
        yield


class SharedTokenizers:
    """In place of `tokenizers.Tokenizer`: equal large files are parsed once, which takes most of a tiny model's load.

    A tokenizer that loading changes (its truncation, its padding, BERT's settings) is parsed each time.
    """

    def __init__(self) -> None:
        self._parsed: dict[bytes, tuple[Tokenizer, str]] = {}

    def __call__(self, model: Any) -> Tokenizer:
        return Tokenizer(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(Tokenizer, name)

    def from_file(self, path: str) -> Tokenizer:
        data = Path(path).read_bytes()
        key = md5(data, usedforsecurity=False).digest()
        known, parts = self._parsed.get(key, (None, ""))
        if known is not None and self._parts(known) == parts:
            return known
        parsed = Tokenizer.from_file(path)
        changed = parsed.truncation or parsed.padding or isinstance(parsed.normalizer, normalizers.BertNormalizer)
        if len(data) > 1 << 20 and not changed:
            self._parsed[key] = parsed, self._parts(parsed)
        return parsed

    @staticmethod
    def _parts(of: Tokenizer) -> str:
        """What a test or a model's settings may have changed."""
        return f"{of.normalizer!r} {of.pre_tokenizer!r} {of.post_processor!r} {of.get_vocab_size()}"


@pytest.fixture(scope="session", autouse=True)
def tokenizers_are_shared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "Tokenizer", SharedTokenizers())
        yield


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`make_checkpoint(checkpoints.xlmr, labels=2)`: that checkpoint's folder, the same one for the same call.

    The folder is shared: copy it before changing anything in it.
    """
    made: dict[str, Path] = {}

    def make(maker: Callable[..., Path], **variant: Any) -> Path:
        key = f"{maker.__name__} {sorted(variant.items())}"
        if key not in made:
            made[key] = maker(tmp_path_factory.mktemp(maker.__name__), **variant)
        return made[key]

    return make


@pytest.fixture(scope="session")
def qwen3_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """Qwen3ForCausalLM, tied, float32."""
    return make_checkpoint(checkpoints.qwen3)


@pytest.fixture(scope="session")
def qwen3_untied_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(checkpoints.qwen3, tied=False)


@pytest.fixture(scope="session")
def qwen3_seq_cls_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """Qwen3ForSequenceClassification with one row."""
    return make_checkpoint(checkpoints.qwen3, head="one-row")


@pytest.fixture(scope="session")
def qwen3_two_rows_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """Qwen3ForSequenceClassification with two rows: no, yes."""
    return make_checkpoint(checkpoints.qwen3, head="two-rows")


@pytest.fixture(scope="session")
def qwen3_vl_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(checkpoints.qwen3_vl)


@pytest.fixture(scope="session")
def xlmr_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """XLMRobertaForSequenceClassification with one label."""
    return make_checkpoint(checkpoints.xlmr)


@pytest.fixture(scope="session")
def xlmr_two_labels_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(checkpoints.xlmr, labels=2)


@pytest.fixture(scope="session")
def roberta_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(checkpoints.roberta)


@pytest.fixture(scope="session")
def bert_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """BertForSequenceClassification with one label."""
    return make_checkpoint(checkpoints.bert)


@pytest.fixture(scope="session")
def bert_two_labels_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(checkpoints.bert, labels=2)


@pytest.fixture(scope="session")
def xlmr_embedder_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """A sentence-transformers folder over XLMRobertaModel: CLS pooling and Normalize."""
    return make_checkpoint(checkpoints.xlmr_embedder)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The real all-MiniLM-L6-v2, read-only."""
    return vocabularies.minilm_folder()

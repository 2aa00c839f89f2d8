"""A model's rankings of a dataset, made here and timed, in as many variants as are to be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rerankd.core import RerankdError
from rerankd.evaluate.measures import load_run
from rerankd.evaluate.report import System
from rerankd.rank.collection import Collection
from rerankd.rank.files import COMPRESSIONS, BadLines, FileProblem
from rerankd.rank.local import LocalScorer
from rerankd.rank.rank import Output, rank
from rerankd.rank.scoring import Wanted
from rerankd.reranker import Reranker

LOADING = ("dtype", "quantization", "max_model_len", "max_batch_tokens", "device", "backend")
KEYS = ("model", "top_k", *LOADING)
NUMBERS = ("top_k", "max_model_len", "max_batch_tokens")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to rank: a model, how it is loaded, and how many candidates it is given."""

    model: str
    top_k: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


def variants(base: Variant, compared: Sequence[str]) -> list[Variant]:
    """`base` alone, or one variant for each value of `dtype=float32,bfloat16`, each of which changes one thing.

    Raises RerankdError for what cannot be compared, and for a value that is there twice.
    """
    found: list[Variant] = []
    for item in compared:
        word, equals, listed = item.partition("=")
        key = {"max_num_batched_tokens": "max_batch_tokens"}.get(word.replace("-", "_"), word.replace("-", "_"))
        if not equals or key not in KEYS:
            raise RerankdError(f"--compare: {item!r} is not KEY=VALUE,VALUE with a KEY of {', '.join(KEYS)}.")
        for value in listed.split(","):
            found.append(_changed(base, key, value.strip(), f"{word}={value.strip()}"))
    labels = Counter(one.label for one in found)
    # Models of several owners may have one name.
    found = [replace(one, label=one.model) if labels[one.label] > 1 and "=" not in one.label else one for one in found]
    if twice := [label for label, count in Counter(one.label for one in found).items() if count > 1]:
        raise RerankdError(f"--compare: {twice[0]} is there twice.")
    return found or [base]


def _changed(base: Variant, key: str, value: str, label: str) -> Variant:
    if not value:
        raise RerankdError(f"--compare: {label!r} has no value.")
    if key == "model":
        return Variant(value, base.top_k, base.options, Path(value).name)
    if key in NUMBERS and not (value.isdecimal() and int(value) > 0):
        raise RerankdError(f"--compare: {label}: {value!r} is not a whole number above 0.")
    if key == "top_k":
        return Variant(base.model, int(value), base.options, label)
    setting: Any = int(value) if key in NUMBERS else None if value == "none" else value
    return Variant(base.model, base.top_k, {**base.options, key: setting}, label)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Queries, a corpus and first-stage runs, as `rerankd rank` takes them."""

    queries: str
    corpus: str
    runs: tuple[str, ...] = ()


def rank_all(
    dataset: Dataset,
    chosen: Sequence[Variant],
    folder: Path,
    wanted: Wanted,
    bad: BadLines,
    *,
    progress: bool,
    tell: Any,
) -> Iterator[System]:
    """Each variant's run, written to `folder`. Raises RerankdError.

    Variants of one model that is loaded alike share it. A run that a stopped evaluation began is gone on with.
    """
    loaded: tuple[Any, Reranker] | None = None
    try:
        for variant in chosen:
            key = (variant.model, tuple(sorted(variant.options.items(), key=str)))
            if loaded is None or loaded[0] != key:
                if loaded is not None:
                    loaded[1].close()
                loaded = (key, Reranker(variant.model, **variant.options))
            reranker = loaded[1]
            info = reranker.info
            precision = info.quantization or info.dtype
            name = variant.label or f"{Path(variant.model).name}@{precision}"
            collection = Collection(dataset.queries, dataset.corpus, dataset.runs, variant.top_k, bad)
            output = Output(str(folder / f"{name.replace('/', '_')}.trec"), "trec", name.replace(" ", "_"))
            about = {**variant.options, "model": variant.model, "device": info.device, "dtype": info.dtype}
            tell(f"{name}: {info.architecture}, {info.device}, {precision}")
            done = rank(
                collection, LocalScorer(reranker), wanted, output, {**about, "top_k": variant.top_k}, bad,
                restart=Path(output.path).exists(), progress=progress,
            )  # fmt: skip
            timed = done.documents - done.kept
            rate = timed / done.seconds if timed else None
            yield System(name, load_run(output.path, bad), rate, done.documents)
    finally:
        if loaded is not None:
            loaded[1].close()


def judgments_of(folder: str, split: str) -> str:
    """The judgments of a BEIR folder. Raises FileProblem where there are none."""
    for suffix in ("", *COMPRESSIONS):
        if (file := Path(folder, "qrels", f"{split}.tsv{suffix}")).is_file():
            return str(file)
    raise FileProblem(f"{folder} holds no qrels/{split}.tsv; give --qrels, or another --split.")

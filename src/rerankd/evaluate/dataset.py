"""Rank a dataset with a model, in each of the variants to compare, and measure the time."""

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
from rerankd.rank.scoring import RankSettings
from rerankd.reranker import Reranker

LOADING_KEYS = ("dtype", "quantization", "max_model_len", "max_batch_tokens", "device", "backend")
KEYS = ("model", "top_k", *LOADING_KEYS)
"""What `--compare` may vary."""
INTEGER_KEYS = ("top_k", "max_model_len", "max_batch_tokens")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to rank the dataset.

    model: a folder, or an id on the hub
    top_k: number of candidates of each query that the model scores; None is all
    options: keyword arguments of Reranker
    label: the name in the report; empty for the model's name and precision
    """

    model: str
    top_k: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


def variants(base: Variant, compared: Sequence[str]) -> list[Variant]:
    """The variants to rank: `base` with one setting changed for each value in `compared`, or else `base` alone.

    compared: items such as `dtype=float32,bfloat16`

    Raises RerankdError for an unknown key, a bad value, or a value that is given twice.
    """
    result: list[Variant] = []
    for item in compared:
        word, equals, listed = item.partition("=")
        key = {"max_num_batched_tokens": "max_batch_tokens"}.get(word.replace("-", "_"), word.replace("-", "_"))
        if not equals or key not in KEYS:
            raise RerankdError(f"--compare: {item!r} is not KEY=VALUE,VALUE; KEY is one of {', '.join(KEYS)}.")
        for value in listed.split(","):
            result.append(_changed(base, key, value.strip(), f"{word}={value.strip()}"))
    counts = Counter(variant.label for variant in result)
    # Models of different owners may have the same name; their labels then include the owner.
    result = [
        replace(variant, label=variant.model) if counts[variant.label] > 1 and "=" not in variant.label else variant
        for variant in result
    ]
    if repeated := [label for label, count in Counter(variant.label for variant in result).items() if count > 1]:
        raise RerankdError(f"--compare: {repeated[0]} is given twice.")
    return result or [base]


def _changed(base: Variant, key: str, value: str, label: str) -> Variant:
    if not value:
        raise RerankdError(f"--compare: {label!r} has no value.")
    if key == "model":
        return Variant(value, base.top_k, base.options, Path(value).name)
    if key in INTEGER_KEYS and not (value.isdecimal() and int(value) > 0):
        raise RerankdError(f"--compare: {label}: {value!r} is not an integer above 0.")
    if key == "top_k":
        return Variant(base.model, int(value), base.options, label)
    setting: Any = int(value) if key in INTEGER_KEYS else None if value == "none" else value
    return Variant(base.model, base.top_k, {**base.options, key: setting}, label)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The paths of queries, a corpus and first-stage runs, as `rerankd rank` accepts them."""

    queries: str
    corpus: str
    runs: tuple[str, ...] = ()


def rank_all(
    dataset: Dataset,
    to_rank: Sequence[Variant],
    folder: Path,
    settings: RankSettings,
    bad: BadLines,
    *,
    progress: bool,
    tell: Any,
) -> Iterator[System]:
    """Rank the dataset with each variant, and yield its ranking and speed.

    Consecutive variants with the same model and options share one loaded model. The rankings are written to `folder`,
    where a stopped evaluation resumes.

    tell: called with a line for the user before each variant

    Raises RerankdError.
    """
    loaded: tuple[Any, Reranker] | None = None
    try:
        for variant in to_rank:
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
            summary = rank(
                collection, LocalScorer(reranker), settings, output, {**about, "top_k": variant.top_k}, bad,
                restart=Path(output.path).exists(), progress=progress,
            )  # fmt: skip
            timed = summary.documents - summary.kept
            rate = timed / summary.seconds if timed else None
            yield System(name, load_run(output.path, bad), rate, summary.documents)
    finally:
        if loaded is not None:
            loaded[1].close()


def judgments_of(folder: str, split: str) -> str:
    """The path of a BEIR folder's judgments for a split such as `test`. Raises FileProblem if there is no such file."""
    for suffix in ("", *COMPRESSIONS):
        if (file := Path(folder, "qrels", f"{split}.tsv{suffix}")).is_file():
            return str(file)
    raise FileProblem(f"{folder} has no qrels/{split}.tsv; give --qrels, or another --split.")

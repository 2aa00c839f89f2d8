"""The Python face: load a model, then `rerank` and `score`, blocking or async."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rerankd.core import Family, RerankRequest, RerankResult


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load and run a model; every field but `model` has a default that needs no thought.

    model: a local folder, or an id on `hub`
    max_model_len: tokens in one prompt; None for the model's own limit
    max_batch_tokens: tokens in one packed batch; None for the device's own choice
    hf_overrides: entries laid over the checkpoint's config.json
    chat_template: a Jinja file, or Jinja text, in place of the built-in template of a decoder
    default_instruction: used where a request brings none; None for the model authors' own
    """

    model: str
    revision: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | Path | None = None
    default_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded: for ready lines, `/v1/models` and metrics."""

    model: str
    path: Path
    architecture: str
    family: Family
    device: str
    dtype: str
    max_model_len: int
    takes_instruction: bool


class Reranker:
    info: ModelInfo

    def __init__(self, model: str | LoadOptions, **options: Any) -> None:
        raise NotImplementedError

    async def answer(self, request: RerankRequest) -> RerankResult:
        """Score a request. Cancelling the awaiting task drops the documents that still wait."""
        raise NotImplementedError

    def rerank(
        self, query: str, documents: Sequence[str], instruction: str | None = None, top_n: int | None = None
    ) -> RerankResult:
        raise NotImplementedError

    def close(self) -> None:
        """Stop the worker; waiting requests fail with `EngineClosed`."""
        raise NotImplementedError

    def __enter__(self) -> Reranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

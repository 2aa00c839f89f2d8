"""rerankd: a rerank engine and server. `from rerankd import Reranker`, or vLLM's own `LLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerankd.core import (
    Chunk,
    Chunking,
    InvalidRequest,
    ModelError,
    RerankdError,
    RerankRequest,
    RerankResult,
    ScoredDocument,
    Truncation,
)
from rerankd.threads import spin_briefly
from rerankd.version import __version__

spin_briefly()

if TYPE_CHECKING:
    from rerankd.cross_encoder import CrossEncoder
    from rerankd.llm import LLM, ScoringOutput, ScoringRequestOutput
    from rerankd.pooling import PoolingParams
    from rerankd.reranker import Reranker

__all__ = [
    "LLM",
    "Chunk",
    "Chunking",
    "CrossEncoder",
    "InvalidRequest",
    "ModelError",
    "PoolingParams",
    "RerankRequest",
    "RerankResult",
    "RerankdError",
    "Reranker",
    "ScoredDocument",
    "ScoringOutput",
    "ScoringRequestOutput",
    "Truncation",
    "__version__",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    # Reranker and LLM import torch; `import rerankd` alone must not.
    if name == "Reranker":
        from rerankd.reranker import Reranker

        return Reranker
    if name == "CrossEncoder":
        from rerankd.cross_encoder import CrossEncoder

        return CrossEncoder
    if name == "PoolingParams":
        from rerankd.pooling import PoolingParams

        return PoolingParams
    if name in ("LLM", "ScoringOutput", "ScoringRequestOutput"):
        from rerankd import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'rerankd' has no attribute {name!r}")

"""The dataclasses that all parts share: contents, requests, prompts, packed batches, results, errors.

Nothing here imports another part, and nothing imports torch at run time, so that a server or a command
line can handle a request without loading an engine.
"""

from __future__ import annotations

from rerankd.core.batch import PackedBatch, PackedGroup, Span
from rerankd.core.contents import Content, Image, Part, Text, Tokens, Video, identity, text_content
from rerankd.core.errors import (
    EngineBusy,
    EngineClosed,
    EngineDead,
    EngineError,
    InvalidRequest,
    ModelError,
    OutOfMemory,
    ReplicaLost,
    RerankdError,
)
from rerankd.core.prompts import PromptBuilder, PromptGroup, Segment, Visual, Visuals, Windows
from rerankd.core.requests import (
    MAX_CHARACTERS,
    Chunking,
    Embeddings,
    Labels,
    Logits,
    OnError,
    RerankRequest,
    Side,
    Truncation,
)
from rerankd.core.results import (
    Chunk,
    EngineLoad,
    ReplicaLoad,
    RerankResult,
    ScoredDocument,
    Stage,
    TextToken,
    seconds_by_stage,
)

__all__ = [
    "MAX_CHARACTERS",
    "Chunk",
    "Chunking",
    "Content",
    "Embeddings",
    "EngineBusy",
    "EngineClosed",
    "EngineDead",
    "EngineError",
    "EngineLoad",
    "Image",
    "InvalidRequest",
    "Labels",
    "Logits",
    "ModelError",
    "OnError",
    "OutOfMemory",
    "PackedBatch",
    "PackedGroup",
    "Part",
    "PromptBuilder",
    "PromptGroup",
    "ReplicaLoad",
    "ReplicaLost",
    "RerankRequest",
    "RerankResult",
    "RerankdError",
    "ScoredDocument",
    "Segment",
    "Side",
    "Span",
    "Stage",
    "Text",
    "TextToken",
    "Tokens",
    "Truncation",
    "Video",
    "Visual",
    "Visuals",
    "Windows",
    "identity",
    "seconds_by_stage",
    "text_content",
]

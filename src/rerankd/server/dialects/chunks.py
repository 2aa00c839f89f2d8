"""The fields for scoring long documents by their best chunk, and the chunk in results.

`max_chunks_per_doc` is of Cohere's API v1, `overlap_tokens` of SiliconFlow's, which is otherwise like Jina's.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import Chunking, ScoredDocument
from rerankd.schemas.contents import Open

CHUNKING_WORDS = {f"chunking.{name}": name for name in ("max_chunks_per_doc", "overlap_tokens")}


class Chunked(Open):
    """A body that may ask for chunks."""

    max_chunks_per_doc: int | None = Field(
        None,
        ge=1,
        description="the most chunks that a document which does not fit (`max_tokens_per_doc`, the prompt's limit) is "
        "split into, to be scored by the best of them; what lies beyond is cut. None, without `overlap_tokens`: it is "
        "not split but cut.",
        examples=[None],
    )
    overlap_tokens: int | None = Field(
        None,
        ge=0,
        description="how many of a chunk's tokens the next one begins with, half of them at most; without "
        "`max_chunks_per_doc` a document is split into as many chunks as it takes.",
        examples=[None],
    )
    return_best_chunk: bool = Field(
        False, description="whether a result carries `best_chunk`: where the chunk that it is scored by lies."
    )

    def chunking(self) -> Chunking | None:
        """How to split documents; None not to split them."""
        if self.max_chunks_per_doc is None and self.overlap_tokens is None:
            return None
        return Chunking(self.max_chunks_per_doc, self.overlap_tokens or 0)

    def best_chunk(self, document: ScoredDocument) -> dict[str, Any]:
        """The fields of a document's best chunk in its result; none unless the request asked for them."""
        if not self.return_best_chunk:
            return {}
        chunk = document.best_chunk
        if chunk is None:
            return {"best_chunk": None}
        found = {
            "index": chunk.index,
            "chunks": document.chunks,
            "tokens": list(chunk.tokens),
            "characters": list(chunk.characters),
            "text": chunk.text,
        }
        return {"best_chunk": found}


class BestChunk(BaseModel):
    """The chunk that a document's score is of."""

    index: int = Field(description="its place among the document's chunks")
    chunks: int = Field(description="how many chunks of the document were scored")
    tokens: tuple[int, int] = Field(description="where it starts and stops, in tokens of the document's text")
    characters: tuple[int, int] = Field(description="the same in Unicode code points")
    text: str


class MayCarryChunk(BaseModel):
    """A result that carries `best_chunk` where `return_best_chunk` is true; null for a document that was not split."""

    best_chunk: BestChunk | None = None

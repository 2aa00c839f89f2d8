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
        description="the most chunks of a document that does not fit (`max_tokens_per_doc`, the prompt's limit). Its "
        "score is that of its best chunk; text beyond the chunks is cut. With null, and without `overlap_tokens`, a "
        "document is cut, not split.",
        examples=[None],
    )
    overlap_tokens: int | None = Field(
        None,
        ge=0,
        description="the number of tokens at the end of a chunk that the next chunk repeats, at most half a chunk. "
        "Without `max_chunks_per_doc` a document is split into as many chunks as needed.",
        examples=[None],
    )
    return_best_chunk: bool = Field(
        False, description="whether a result has `best_chunk`: the place of the chunk that has the document's score."
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
        chunk_fields = {
            "index": chunk.index,
            "chunks": document.chunks,
            "tokens": list(chunk.tokens),
            "characters": list(chunk.characters),
            "text": chunk.text,
        }
        return {"best_chunk": chunk_fields}


class BestChunk(BaseModel):
    """The chunk that a document's score is of."""

    index: int = Field(description="the index among the document's chunks")
    chunks: int = Field(description="the number of scored chunks of the document")
    tokens: tuple[int, int] = Field(description="its start and stop, in tokens of the document's text")
    characters: tuple[int, int] = Field(description="the same in Unicode code points")
    text: str


class MayCarryChunk(BaseModel):
    """A result that carries `best_chunk` where `return_best_chunk` is true; null for a document that was not split."""

    best_chunk: BestChunk | None = None

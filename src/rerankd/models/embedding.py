"""The head of a bi-encoder: two texts' embeddings, compared.

Reference: Reimers and Gurevych, 2019; `Pooling`, `Dense` and `similarity_fn_name` in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, Span
from rerankd.models.checkpoint.modules import embedding_modules, pooling_modes
from rerankd.models.checkpoint.sentence_transformers import Similarity, read_settings
from rerankd.models.heads import Activation
from rerankd.models.pooling import Pooling
from rerankd.models.steps import SENTENCE, normalize, read_steps


@dataclass(frozen=True, slots=True)
class EmbeddingHead:
    """The cosine, or the dot product, of the embeddings of a document and of its group's prefix, which is the query.

    steps: what makes an embedding of pooled states
    dimensions: how many first values of an embedding are read; None for all
    """

    pooling: Pooling
    steps: Callable[[Tensor], Tensor]
    similarity: Similarity = "cosine"
    dimensions: int | None = None
    activation: Activation = "identity"

    def rows(self, batch: PackedBatch) -> list[int] | None:
        """The rows that are pooled; see `Pooling`."""
        return self.pooling.rows(texts_of(batch))

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        embeddings = self.steps(self.pooling(states, texts_of(batch)))[:, : self.dimensions]
        if self.similarity == "cosine":
            embeddings = normalize(embeddings)
        sizes = [1 + len(group.suffixes) for group in batch.groups]
        return torch.cat([own[1:] @ own[0] for own in torch.split(embeddings, sizes)])


def texts_of(batch: PackedBatch) -> list[Span]:
    """Each group's query and its documents, as they lie."""
    return [span for group in batch.groups for span in (group.prefix, *group.suffixes)]


def embedding_head(folder: Path, hidden: int, device: torch.device) -> EmbeddingHead:
    """The head that the modules and settings of a folder make; ModelError for modules that are not supported."""
    _, pooling, *rest = embedding_modules(folder)
    modes = pooling_modes(pooling)
    steps = read_steps(rest, hidden * len(modes), device)
    if steps.output != SENTENCE:
        raise ModelError(f"{folder / 'modules.json'}: the modules give scores of one text, which compare nothing.")
    settings = read_settings(folder, "SentenceTransformer")
    return EmbeddingHead(Pooling(modes), steps, settings.similarity, settings.truncate_dim)

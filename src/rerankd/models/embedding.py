"""The head of a bi-encoder: two texts' embeddings, compared.

Reference: Reimers and Gurevych, 2019; `Pooling`, `Dense` and `similarity_fn_name` in sentence-transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, PackedGroup, Span
from rerankd.models.checkpoint.modules import embedding_modules, pooling_modes
from rerankd.models.checkpoint.sentence_transformers import Similarity, read_settings
from rerankd.models.heads import Activation
from rerankd.models.pooling import Pooling
from rerankd.models.steps import SENTENCE, Steps, normalize, read_steps


@dataclass(frozen=True, slots=True)
class EmbeddingHead:
    """The cosine, or the dot product, of the embeddings of a document and of its group's prefix (the query).

    steps: the steps from pooled states to an embedding
    dimensions: the number of first values of an embedding that are read; None for all

    A group that asks for outputs gets the embeddings of its documents, not normalised.
    """

    pooling: Pooling
    steps: Steps
    similarity: Similarity = "cosine"
    dimensions: int | None = None
    activation: Activation = "identity"

    @property
    def outputs(self) -> int:
        """Values of an embedding."""
        return self.steps.width if self.dimensions is None else min(self.dimensions, self.steps.width)

    def rows(self, batch: PackedBatch) -> list[int] | None:
        """The rows that are pooled; see `Pooling`."""
        return self.pooling.rows(texts_of(batch))

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        embeddings = self.steps(self.pooling(states, texts_of(batch)))[:, : self.dimensions]
        compared = normalize(embeddings) if self.similarity == "cosine" else embeddings
        sizes = [len(_texts(group)) for group in batch.groups]
        parts = zip(batch.groups, torch.split(embeddings, sizes), torch.split(compared, sizes), strict=True)
        return torch.cat(
            [outputs.flatten() if group.outputs else vectors[1:] @ vectors[0] for group, outputs, vectors in parts]
        )


def texts_of(batch: PackedBatch) -> list[Span]:
    """The spans of each group's query, if it has one, and of its documents, in packed order."""
    return [span for group in batch.groups for span in _texts(group)]


def _texts(group: PackedGroup) -> tuple[Span, ...]:
    return group.suffixes if group.outputs else (group.prefix, *group.suffixes)


def embedding_head(folder: Path, hidden: int, device: torch.device) -> EmbeddingHead:
    """The head that the modules and settings of a folder make; ModelError for modules that are not supported."""
    _, pooling, *later_modules = embedding_modules(folder)
    modes = pooling_modes(pooling)
    steps = read_steps(later_modules, hidden * len(modes), device)
    if steps.output != SENTENCE:
        raise ModelError(f"{folder / 'modules.json'}: the modules give scores of one text, which compare nothing.")
    settings = read_settings(folder, "SentenceTransformer")
    return EmbeddingHead(Pooling(modes), steps, settings.similarity, settings.truncate_dim)

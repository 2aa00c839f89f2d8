"""Bi-encoders in sentence-transformers' folder form: pooled, normalised embeddings and their cosine.

Reference: Reimers and Gurevych, 2019, and sentence-transformers' `modules.json` with its `Pooling` and
`Normalize` modules.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import PackedBatch, Span
from rerankd.models.base import Activation, TokenIds
from rerankd.models.bert import Encoder
from rerankd.models.config import Config
from rerankd.models.modules import read_pooling
from rerankd.models.weights import Weights
from rerankd.models.xlm_roberta import position_offset


class BiEncoder:
    """`BertModel` or `XLMRobertaModel` with pooling; the logit is the cosine itself.

    A group's prefix is its query. Queries and documents are encoded in the same packed batch, each on its own.
    """

    activation: Activation = "identity"

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds, *, roberta: bool = False) -> None:
        """roberta: whether positions begin behind the padding id, as in `XLMRobertaModel`"""
        self.pooling = read_pooling(Path(config.source).parent)
        scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "roberta" if roberta else "bert")
        self.encoder = Encoder(config, scope, position_offset(config) if roberta else 0)

    def __call__(self, batch: PackedBatch) -> Tensor:
        spans = [span for group in batch.groups for span in (group.prefix, *group.suffixes)]
        embeddings = F.normalize(self._pool(self.encoder.states(batch, spans), spans), dim=-1)
        sizes = [1 + len(group.suffixes) for group in batch.groups]
        cosines = [own[1:] @ own[0] for own in torch.split(embeddings, sizes)]
        return torch.cat(cosines)

    def _pool(self, states: Tensor, spans: list[Span]) -> Tensor:
        """float32 [spans, hidden]."""
        if self.pooling == "cls":
            return states[torch.tensor([span.start for span in spans], device=states.device)]
        lengths = torch.tensor([len(span) for span in spans], device=states.device)
        owner = torch.repeat_interleave(torch.arange(len(spans), device=states.device), lengths)
        sums = torch.zeros(len(spans), states.shape[1], device=states.device)
        return sums.index_add_(0, owner, states) / lengths[:, None]

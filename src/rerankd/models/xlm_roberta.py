"""RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2019) cross-encoders: BGE rerankers and kin.

Behaviour reference: `modeling_xlm_roberta.py` in transformers. The two differ in their tokenizers only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import PackedBatch
from rerankd.models.base import TokenIds, declared_activation, label_count, score_rows
from rerankd.models.bert import Encoder
from rerankd.models.config import Config
from rerankd.models.weights import Weights


def position_offset(config: Config) -> int:
    """Positions begin behind the padding id."""
    most = config.size("max_position_embeddings", least=3)
    offset = config.size("pad_token_id", 1, least=0) + 1
    if offset > most - 2:
        raise config.wrong("pad_token_id", f"must leave some of the {most} positions (`max_position_embeddings`)")
    return offset


class XLMRobertaCrossEncoder:
    """`XLMRobertaForSequenceClassification`, `RobertaForSequenceClassification`: dense, tanh, out_proj on `<s>`."""

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds) -> None:
        hidden, labels = config.size("hidden_size"), label_count(config)
        head = weights.scope("classifier")
        self.activation = declared_activation(config, labels)
        head.expect_size(config, "num_labels", labels, "out_proj.weight")
        self.encoder = Encoder(config, weights.scope("roberta"), position_offset(config))
        self.dense = head.tensor("dense.weight", hidden, hidden, dtype=torch.float32)
        self.dense_bias = head.tensor("dense.bias", hidden, dtype=torch.float32)
        self.out = head.tensor("out_proj.weight", labels, hidden, dtype=torch.float32)
        self.out_bias = head.tensor("out_proj.bias", labels, dtype=torch.float32)

    def __call__(self, batch: PackedBatch) -> Tensor:
        inner = F.linear(self.encoder.first_states(batch), self.dense, self.dense_bias).tanh()
        return score_rows(F.linear(inner, self.out, self.out_bias))

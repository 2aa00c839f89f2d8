"""BERT (Devlin et al., 2018) as a cross-encoder (`BertForSequenceClassification`) and as a plain encoder.

Behaviour reference: `modeling_bert.py` in transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, Span
from rerankd.layers.attention.layout import pruned_layout, separate_layout
from rerankd.layers.encoder import EncoderLayer
from rerankd.models.base import TokenIds, declared_activation, first_tokens, label_count, score_rows
from rerankd.models.config import Config
from rerankd.models.weights import Weights

GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


class Encoder:
    """Embeddings and layers that BERT and RoBERTa share; `position_offset` is where positions begin."""

    def __init__(self, config: Config, weights: Weights, position_offset: int = 0) -> None:
        config.require("position_embedding_type", "absolute", None)
        config.require("is_decoder", False, None)
        hidden, mlp = config.get("hidden_size", int), config.get("intermediate_size", int)
        eps = config.get("layer_norm_eps", float, 1e-12)
        activation = config.get("hidden_act", str, "gelu")
        if activation not in GELU:
            raise ModelError(f"{config.source}: `hidden_act` is {activation!r}; known are {', '.join(GELU)}.")
        embeddings = weights.scope("embeddings")
        types = config.get("type_vocab_size", int, 2)
        self.words = embeddings.tensor("word_embeddings.weight", config.get("vocab_size", int), hidden)
        self.positions = embeddings.tensor(
            "position_embeddings.weight", config.get("max_position_embeddings", int), hidden
        )
        self.types = embeddings.tensor("token_type_embeddings.weight", types, hidden)
        self.norm = embeddings.layer_norm("LayerNorm", hidden, eps, torch.float32)
        self.position_offset = position_offset
        self.layers = []
        for i in range(config.get("num_hidden_layers", int)):
            layer = weights.scope(f"encoder.layer.{i}")
            attention = layer.scope("attention")
            own = attention.scope("self")
            self.layers.append(
                EncoderLayer(
                    runtime=weights.runtime,
                    heads=config.get("num_attention_heads", int),
                    query=own.linear("query", inputs=hidden, outputs=hidden, bias=True),
                    key_value=own.linear("key", "value", inputs=hidden, outputs=(hidden, hidden), bias=True),
                    attention_out=attention.linear("output.dense", inputs=hidden, outputs=hidden, bias=True),
                    attention_norm=attention.layer_norm("output.LayerNorm", hidden, eps, torch.float32),
                    up=layer.linear("intermediate.dense", inputs=hidden, outputs=mlp, bias=True),
                    down=layer.linear("output.dense", inputs=mlp, outputs=hidden, bias=True),
                    out_norm=layer.layer_norm("output.LayerNorm", hidden, eps, torch.float32),
                    gelu=GELU[activation],
                )
            )

    def first_states(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of each document's first token (`[CLS]`, `<s>`): float32 [documents, hidden].

        Nothing above the last layer reads another row, so that layer computes no other.
        """
        documents = batch.documents()
        layout = separate_layout(documents)
        x = self._embed(batch)
        for layer in self.layers[:-1]:
            x = layer(x, layout)
        return self.layers[-1](x, pruned_layout(layout, documents), keep=first_tokens(batch))

    def states(self, batch: PackedBatch, spans: list[Span]) -> Tensor:
        """Every token's last hidden state, float32 [T, hidden]; `spans` are the runs that attend to themselves."""
        layout = separate_layout(spans)
        x = self._embed(batch)
        for layer in self.layers:
            x = layer(x, layout)
        return x

    def _embed(self, batch: PackedBatch) -> Tensor:
        x = F.embedding(batch.token_ids, self.words).float()
        x = x + F.embedding(batch.positions + self.position_offset, self.positions)
        types = torch.zeros_like(batch.token_ids) if batch.token_types is None else batch.token_types
        return self.norm(x + F.embedding(types, self.types))


class BertCrossEncoder:
    """`BertForSequenceClassification`: tanh pooler on `[CLS]`, then the classifier."""

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds) -> None:
        hidden = config.get("hidden_size", int)
        bert = weights.scope("bert")
        self.activation = declared_activation(config)
        self.encoder = Encoder(config, bert)
        self.pooler = bert.tensor("pooler.dense.weight", hidden, hidden, dtype=torch.float32)
        self.pooler_bias = bert.tensor("pooler.dense.bias", hidden, dtype=torch.float32)
        self.classifier = weights.tensor("classifier.weight", label_count(config), hidden, dtype=torch.float32)
        self.classifier_bias = weights.tensor("classifier.bias", label_count(config), dtype=torch.float32)

    def __call__(self, batch: PackedBatch) -> Tensor:
        pooled = F.linear(self.encoder.first_states(batch), self.pooler, self.pooler_bias).tanh()
        return score_rows(F.linear(pooled, self.classifier, self.classifier_bias))

"""BERT (Devlin et al., 2018) as a cross-encoder (`BertForSequenceClassification`) and as a plain encoder.

Behaviour reference: `modeling_bert.py` in transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, Span
from rerankd.layers.attention import AttentionLayout
from rerankd.layers.attention.layout import pruned_layout, separate_layout
from rerankd.layers.attention.slabs import Slab, in_slabs
from rerankd.layers.embedding import Embeddings
from rerankd.layers.encoder import EncoderLayer
from rerankd.layers.linear import Nonlinearity
from rerankd.layers.norm import States
from rerankd.models.base import TokenIds, declared_activation, label_count, score_rows
from rerankd.models.config import Config, shown
from rerankd.models.weights import Weights

GELU: dict[str, Nonlinearity] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


class Encoder:
    """Embeddings and layers that BERT and RoBERTa share; `position_offset` is where positions begin."""

    def __init__(self, config: Config, weights: Weights, position_offset: int = 0) -> None:
        config.require("position_embedding_type", "absolute", None)
        config.require("is_decoder", False, None)
        hidden, mlp = config.size("hidden_size"), config.size("intermediate_size")
        eps = config.epsilon("layer_norm_eps", 1e-12)
        activation = config.get("hidden_act", str, "gelu")
        if activation not in GELU:
            raise ModelError(f"{config.source}: `hidden_act` is {shown(activation)}; known are {', '.join(GELU)}.")
        heads, layers = config.size("num_attention_heads"), config.size("num_hidden_layers")
        words, types = config.size("vocab_size"), config.size("type_vocab_size", 2)
        most = config.size("max_position_embeddings")
        if hidden % heads:
            raise config.wrong("num_attention_heads", f"must divide `hidden_size` ({hidden})")
        weights.expect_size(config, "hidden_size", hidden, "embeddings.word_embeddings.weight", axis=1)
        weights.expect_size(config, "vocab_size", words, "embeddings.word_embeddings.weight")
        weights.expect_size(config, "type_vocab_size", types, "embeddings.token_type_embeddings.weight")
        weights.expect_size(config, "max_position_embeddings", most, "embeddings.position_embeddings.weight")
        weights.expect_size(config, "intermediate_size", mlp, "encoder.layer.0.intermediate.dense.weight")
        weights.expect_count(config, "num_hidden_layers", layers, "encoder.layer")
        embeddings = weights.scope("embeddings")
        positions = embeddings.tensor("position_embeddings.weight", most, hidden)
        self.embeddings = Embeddings(
            words=embeddings.tensor("word_embeddings.weight", words, hidden),
            positions=positions[position_offset:],
            types=embeddings.tensor("token_type_embeddings.weight", types, hidden),
            norm=embeddings.layer_norm("LayerNorm", hidden, eps, torch.float32),
        )
        self.hidden = hidden
        self.mlp = mlp
        self.runtime = weights.runtime
        self.layers = []
        for i in range(layers):
            layer = weights.scope(f"encoder.layer.{i}")
            attention = layer.scope("attention")
            own = attention.scope("self")
            # 8 bits cost the most where every token's error reaches all others, in what attention adds to a row, and
            # where all layers build on it.
            first = i == 0
            self.layers.append(
                EncoderLayer(
                    runtime=weights.runtime,
                    heads=heads,
                    query=own.linear("query", inputs=hidden, outputs=hidden, bias=True, exact=first),
                    key_value=own.linear(
                        "key", "value", inputs=hidden, outputs=(hidden, hidden), bias=True, exact=True
                    ),
                    attention_out=attention.linear(
                        "output.dense", inputs=hidden, outputs=hidden, bias=True, exact=True
                    ),
                    attention_norm=attention.layer_norm("output.LayerNorm", hidden, eps, torch.float32),
                    up=layer.linear("intermediate.dense", inputs=hidden, outputs=mlp, bias=True, exact=first),
                    down=layer.linear("output.dense", inputs=mlp, outputs=hidden, bias=True, exact=first),
                    mlp=mlp,
                    out_norm=layer.layer_norm("output.LayerNorm", hidden, eps, torch.float32),
                    gelu=GELU[activation],
                )
            )

        parts = [part for layer in self.layers for part in layer.parts]
        self.together = self.runtime.together(hidden // self.layers[0].heads, *parts)

    def first_states(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of each document's first token (`[CLS]`, `<s>`): float32 [documents, hidden].

        Nothing above the last layer reads another row, so that layer computes no other.
        """
        slabs = self._slabs(batch.documents())
        firsts = [_firsts(slab.layout, self.runtime.device) for slab in slabs]
        states = [self._embed(batch, slab.keys) for slab in slabs]
        last = self.layers[-1]
        with self.together():
            states = _through(self.layers[:-1], states, slabs)
            states = [last(x, layout, keep) for x, (layout, keep) in zip(states, firsts, strict=True)]
        return torch.cat([x.exact for x in states])

    def states(self, batch: PackedBatch, spans: list[Span]) -> Tensor:
        """Every token's last hidden state, float32 [T, hidden]; `spans` are the runs that attend to themselves."""
        slabs = self._slabs(spans)
        states = [self._embed(batch, slab.keys) for slab in slabs]
        with self.together():
            states = _through(self.layers, states, slabs)
        return torch.cat([x.exact for x in states])

    def _slabs(self, spans: list[Span]) -> tuple[Slab, ...]:
        return in_slabs(separate_layout(spans), self.runtime.rows_at_once(self.mlp))

    def _embed(self, batch: PackedBatch, rows: slice) -> States:
        out = States.empty(rows.stop - rows.start, self.hidden, self.runtime)
        types = None if batch.token_types is None else batch.token_types[rows]
        self.embeddings(batch.token_ids[rows], batch.positions[rows], types, out)
        return out


def _through(layers: list[EncoderLayer], states: list[States], slabs: tuple[Slab, ...]) -> list[States]:
    """Each slab's states after the layers, which all slabs pass before the next one's weights are read."""
    for layer in layers:
        states = [layer(x, slab.layout) for x, slab in zip(states, slabs, strict=True)]
    return states


def _firsts(layout: AttentionLayout, device: torch.device) -> tuple[AttentionLayout, Tensor]:
    """The layout of a layer that computes only each document's first row, and those rows."""
    documents = [block.query for block in layout.blocks]
    return pruned_layout(layout, documents), torch.tensor([document.start for document in documents], device=device)


class BertCrossEncoder:
    """`BertForSequenceClassification`: tanh pooler on `[CLS]`, then the classifier."""

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds) -> None:
        hidden, labels = config.size("hidden_size"), label_count(config)
        bert = weights.scope("bert")
        self.activation = declared_activation(config, labels)
        weights.expect_size(config, "num_labels", labels, "classifier.weight")
        self.encoder = Encoder(config, bert)
        self.pooler = bert.tensor("pooler.dense.weight", hidden, hidden, dtype=torch.float32)
        self.pooler_bias = bert.tensor("pooler.dense.bias", hidden, dtype=torch.float32)
        self.classifier = weights.tensor("classifier.weight", labels, hidden, dtype=torch.float32)
        self.classifier_bias = weights.tensor("classifier.bias", labels, dtype=torch.float32)

    def __call__(self, batch: PackedBatch) -> Tensor:
        pooled = F.linear(self.encoder.first_states(batch), self.pooler, self.pooler_bias).tanh()
        return score_rows(F.linear(pooled, self.classifier, self.classifier_bias))

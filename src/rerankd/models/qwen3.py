"""Qwen3-Reranker: a Qwen3 decoder (Yang et al., 2025) that is asked for "yes" or "no".

Behaviour reference: `modeling_qwen3.py` in transformers and the scoring script on the model's card.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.layers.attention.layout import causal_layout, pruned_layout
from rerankd.layers.attention.slabs import Slab, in_slabs
from rerankd.layers.linear import Linear
from rerankd.layers.norm import RMSNorm
from rerankd.layers.rotary import Rope, Rotary, Rotation
from rerankd.layers.rows import Rows, add, columns, plain
from rerankd.models.answers import answer_tokens, named_tokens
from rerankd.models.base import Activation, TokenIds, declared_activation, label_count, last_tokens
from rerankd.models.config import Config
from rerankd.models.modules import read_logit_score
from rerankd.models.vocabulary import answers, is_tied, vocabulary_head
from rerankd.models.weights import Weights

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Qwen3Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    eps: float
    rope: Rope

    @classmethod
    def of(cls, config: Config) -> Qwen3Shape:
        config.require("hidden_act", "silu")
        config.require("use_sliding_window", False, None)
        config.require("attention_bias", False, None)
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        shape = cls(
            hidden=hidden,
            layers=config.size("num_hidden_layers"),
            heads=heads,
            kv_heads=config.size("num_key_value_heads", heads),
            head_dim=config.size("head_dim", max(hidden // heads, 1)),
            mlp=config.size("intermediate_size"),
            vocabulary=config.size("vocab_size"),
            eps=config.epsilon("rms_norm_eps", 1e-6),
            rope=config.rope(),
        )
        if shape.head_dim % 2:
            raise config.wrong("head_dim", "must be even")
        if heads % shape.kv_heads:
            raise config.wrong("num_key_value_heads", f"must divide `num_attention_heads` ({heads})")
        return shape

    def expect_in(self, config: Config, weights: Weights) -> None:
        """Refuse weights of other sizes than the configuration's."""
        weights.expect_size(config, "hidden_size", self.hidden, "embed_tokens.weight", axis=1)
        weights.expect_size(config, "vocab_size", self.vocabulary, "embed_tokens.weight")
        weights.expect_count(config, "num_hidden_layers", self.layers, "layers")
        layer = weights.scope("layers.0")
        layer.expect_size(config, "intermediate_size", self.mlp, "mlp.gate_proj.weight")
        layer.expect_size(config, "head_dim", self.head_dim, "self_attn.q_norm.weight")
        layer.expect_size(config, "num_attention_heads", self.heads, "self_attn.q_proj.weight", each=self.head_dim)
        layer.expect_size(config, "num_key_value_heads", self.kv_heads, "self_attn.k_proj.weight", each=self.head_dim)


class Qwen3Layer:
    """x + attention(norm(x)), then x + mlp(norm(x)), with RMSNorm on each head's query and key."""

    def __init__(self, shape: Qwen3Shape, weights: Weights) -> None:
        self.runtime = weights.runtime
        self.shape = shape
        hidden, head_dim = shape.hidden, shape.head_dim
        kv = shape.kv_heads * head_dim
        attention, mlp = weights.scope("self_attn"), weights.scope("mlp")
        self.query = attention.linear("q_proj", inputs=hidden, outputs=shape.heads * head_dim)
        # 8 bits cost the most where every token's error reaches all others.
        self.key_value = attention.linear("k_proj", "v_proj", inputs=hidden, outputs=(kv, kv), exact=True)
        self.out = attention.linear("o_proj", inputs=shape.heads * head_dim, outputs=hidden)
        self.query_norm = attention.rms_norm("q_norm", head_dim, shape.eps)
        self.key_norm = attention.rms_norm("k_norm", head_dim, shape.eps)
        self.gate_up = mlp.linear("gate_proj", "up_proj", inputs=hidden, outputs=(shape.mlp, shape.mlp))
        self.down = mlp.linear("down_proj", inputs=shape.mlp, outputs=hidden)
        self.attention_norm = weights.rms_norm("input_layernorm", hidden, shape.eps)
        self.mlp_norm = weights.rms_norm("post_attention_layernorm", hidden, shape.eps)

    @property
    def parts(self) -> tuple[Linear | RMSNorm, ...]:
        maps = self.query, self.key_value, self.out, self.gate_up, self.down
        return *maps, self.query_norm, self.key_norm, self.attention_norm, self.mlp_norm

    def __call__(self, x: Rows, rotation: Rotation, slabs: Sequence[Slab], keep: Tensor | None = None) -> Rows:
        """x: [T, hidden], which is written over. Returns it, or only the rows `keep` (int64) of it, which `slabs` then
        have for their queries."""
        shape, runtime = self.shape, self.runtime
        kv = shape.kv_heads * shape.head_dim
        keys_values = runtime.room(max(slab.key_count for slab in slabs), 2 * kv)
        keys, values = columns(keys_values, slice(kv)), columns(keys_values, slice(kv, 2 * kv))
        queries = runtime.room(max(slab.layout.query_rows for slab in slabs), shape.heads * shape.head_dim)
        out = x if keep is None else runtime.chosen(x, keep)
        for slab in slabs:
            asking = slice(slab.layout.query_rows)
            for rows, own in runtime.chunks_of(slab.keys, shape.mlp):
                new = slice(slab.kept + own.start, slab.kept + own.stop)
                normed = self.attention_norm.rows(x[rows])
                self.key_value(normed, out=keys_values[new])
                self.key_norm.rotated(keys[new], rotation.rows(rows), out=keys[new])
                if keep is None:
                    self._queries(normed, rotation.rows(rows), out=queries[own])
            if keep is not None:
                normed = self.attention_norm.rows(out[slab.queries])
                self._queries(normed, rotation.rows(keep[slab.queries]), out=queries[asking])
            attended = runtime.attend(queries[asking], keys, values, shape.head_dim, slab.layout)
            for rows, own in runtime.chunks_of(slab.queries, shape.mlp):
                inner = self.out.plus(attended[own], out[rows], out=out[rows])
                self.down.plus(self.gate_up.gated(self.mlp_norm.rows(inner)), inner, out=inner)
        return out

    def _queries(self, normed: Rows, rotation: Rotation, out: Rows) -> None:
        self.query(normed, out=out)
        self.query_norm.rotated(out, rotation, out=out)


@dataclass(frozen=True, slots=True)
class Deepstack:
    """What is added to some rows after each of the first layers (Meng et al., 2024): visual features.

    rows: int64 [n]; features: [n, hidden] for each layer. The last layer needs none: no row that is scored is visual.
    """

    rows: Tensor
    features: Sequence[Tensor]


class Qwen3Decoder:
    """Embedding, layers and final norm: from tokens to the documents' last hidden states."""

    def __init__(self, shape: Qwen3Shape, weights: Weights) -> None:
        self.embedding = weights.tensor("embed_tokens.weight", shape.vocabulary, shape.hidden)
        self.layers = [Qwen3Layer(shape, weights.scope(f"layers.{i}")) for i in range(shape.layers)]
        self.runtime = weights.runtime
        self.rows_at_once = self.runtime.rows_at_once(shape.mlp)
        parts = [part for layer in self.layers for part in layer.parts]
        self.together = self.runtime.together(shape.head_dim, *parts)
        self.norm = RMSNorm(weights.tensor("norm.weight", shape.hidden, dtype=torch.float32), shape.eps)

    def embed(self, batch: PackedBatch) -> Tensor:
        """[T, hidden]."""
        return F.embedding(batch.token_ids, self.embedding)

    def __call__(self, x: Tensor, rotation: Rotation, batch: PackedBatch, deepstack: Deepstack | None = None) -> Tensor:
        """x: [T, hidden], which is written over. Returns float32 [documents, hidden]."""
        layout = causal_layout(batch.groups)
        slabs = in_slabs(layout, self.rows_at_once)
        # Nothing above the last layer reads any row but a document's last.
        last_slabs = in_slabs(pruned_layout(layout, batch.documents()), self.rows_at_once)
        states = self.runtime.rows(x)
        layers = self.layers[:-1]
        if deepstack is not None:
            for layer, features in zip(layers, deepstack.features, strict=False):
                with self.together():
                    states = layer(states, rotation, slabs)
                add(states, deepstack.rows, features)
            layers = layers[len(deepstack.features) :]
        with self.together():
            for layer in layers:
                states = layer(states, rotation, slabs)
            last = self.layers[-1](states, rotation, last_slabs, last_tokens(batch))
        return self.norm(plain(last).float())


class Qwen3Reranker:
    """`Qwen3ForCausalLM` by its yes/no logits, `Qwen3ForSequenceClassification` by its score rows."""

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds) -> None:
        shape = Qwen3Shape.of(config)
        runtime = weights.runtime
        base = weights.scope_holding("embed_tokens.weight", "model", "")
        shape.expect_in(config, base)
        self.rotary = Rotary(shape.rope, shape.head_dim, runtime.device, runtime.dtype)
        self.decoder = Qwen3Decoder(shape, base)
        self.head, self.activation = relevance_head(config, weights, base, shape.hidden, token_id)
        self.vocabulary = vocabulary_head(config, weights, self.decoder.embedding)

    def __call__(self, batch: PackedBatch) -> Tensor:
        states = self.decoder(self.decoder.embed(batch), self.rotary(batch.positions), batch)
        return answers(states, self.head, self.vocabulary, batch)


def relevance_head(
    config: Config, weights: Weights, base: Weights, hidden: int, token_id: TokenIds
) -> tuple[Tensor, Activation]:
    """The rows that score a last hidden state, and what makes a score of the logit: float32 [1, hidden], or
    [2, hidden] for (no, yes).

    A converted checkpoint has them as `score.weight`. An original one has a vocabulary head, of which the answers'
    rows are all that is read.
    """
    if "score.weight" in weights:
        labels = weights.height("score.weight")
        if labels not in (1, 2):
            raise ModelError(f"`score.weight` has {labels} rows; a reranker has 1, or 2 for (no, yes).")
        if config.entries.get("id2label") is not None or config.entries.get("num_labels") is not None:
            weights.expect_size(config, "num_labels", label_count(config), "score.weight")
        if read_logit_score(Path(config.source).parent) is not None:
            raise ModelError(
                f"{config.source}: the weights have a classifier (`score.weight`), but modules.json lists LogitScore, "
                "which scores by the vocabulary; take the one away that is not meant."
            )
        if named_tokens(config) is not None:
            log.warning("`classifier_from_token` has no effect: the checkpoint has a classifier of its own.")
        head = weights.tensor("score.weight", labels, hidden, dtype=torch.float32)
        return head, declared_activation(config, labels)
    ids, activation = answer_tokens(config, token_id), declared_activation(config, 1)
    embedding = base.rows("embed_tokens.weight", ids, hidden)
    if "lm_head.weight" not in weights:
        if not is_tied(config, weights):
            raise ModelError(
                f"{config.source}: `tie_word_embeddings` is false, but the weights have no `lm_head.weight`."
            )
        return embedding, activation
    rows = weights.rows("lm_head.weight", ids, hidden)
    if not is_tied(config, weights):
        return rows, activation
    if not torch.equal(rows, embedding):
        raise ModelError(
            f"{config.source}: `tie_word_embeddings` is true, but `lm_head.weight` is not the embedding; set it to "
            "false."
        )
    return embedding, activation

"""The tables of disentangled attention, as configurations and checkpoints of DeBERTa-v2 and v3 have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rerankd.layers.relative import Disentangled
from rerankd.layers.spec import Affine, LayerWeights, RelativeWeights, TransformerSpec
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights

KINDS = ("c2p", "p2c")


def kinds_of(config: Config) -> tuple[str, ...]:
    """The products with tables that are added to logits: content with distance, distance with content."""
    value = config.entries.get("pos_att_type") or ()
    kinds = tuple(part.strip() for part in value.lower().split("|")) if isinstance(value, str) else tuple(value)
    if not set(kinds) <= set(KINDS) or len(set(kinds)) != len(kinds):
        raise config.wrong("pos_att_type", f"must be some of {' and '.join(KINDS)}")
    return kinds


def span_of(config: Config) -> Disentangled:
    """How distances become rows of the tables."""
    farthest = config.get("max_relative_positions", int, -1)
    if farthest < 1:
        farthest = config.size("max_position_embeddings")
    buckets = config.get("position_buckets", int, -1)
    if buckets < 1:
        return Disentangled(farthest)
    if not 4 <= buckets < 2 * (farthest - 1):
        raise config.wrong("position_buckets", f"must be from 4 to {2 * (farthest - 1)}, twice the farthest distance")
    return Disentangled(buckets, farthest)


class RelativeTables:
    """The relative tables of each layer: projections of one embedding of distances, which all layers share."""

    def __init__(self, config: Config, weights: Weights, spec: TransformerSpec) -> None:
        self.kinds, self.shared = kinds_of(config), config.flag("share_att_key") is True
        rows, self.hidden = 2 * span_of(config).span, spec.hidden
        table = weights.tensor("rel_embeddings.weight", rows, spec.hidden, dtype=torch.float32)
        if "layer_norm" in config.get("norm_rel_ebd", str, "none").lower():
            norm = weights.norm("LayerNorm", spec.hidden, spec.layers[0].norm)
            table = F.layer_norm(table, (spec.hidden,), *norm, spec.layers[0].norm.eps)
        self.table = table

    def __call__(self, layer: LayerWeights, weights: Weights) -> RelativeWeights:
        attention, width = weights.scope("attention.self"), len(layer.query.weight)
        keys = Affine(layer.key_value.weight[:width], None if (b := layer.key_value.bias) is None else b[:width])
        queries = layer.query
        if not self.shared:
            # The rows of the shard's heads; the heads of all shards are as wide as hidden states.
            rows = slice(weights.shard.rank * width, (weights.shard.rank + 1) * width)

            def projection(name: str) -> Affine:
                return attention.affine(name, self.hidden, self.hidden, True, rows=rows)

            keys = projection("pos_key_proj") if "c2p" in self.kinds else keys
            queries = projection("pos_query_proj") if "p2c" in self.kinds else queries
        return RelativeWeights(
            keys=self._projected(keys) if "c2p" in self.kinds else None,
            queries=self._projected(queries) if "p2c" in self.kinds else None,
        )

    def _projected(self, affine: Affine) -> torch.Tensor:
        bias = None if affine.bias is None else affine.bias.float()
        return F.linear(self.table, affine.weight.float(), bias).to(affine.weight.dtype)

"""Attention over the packed layout whose logits are sums over content and over distance.

Disentangled attention (He et al., 2021), and biases of buckets (Raffel et al., 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.attention import gathered, scattered
from rerankd.backends.torch.buckets import Bucket, in_buckets
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.relative import Buckets, Disentangled
from rerankd.layers.spec import RelativeWeights


def disentangled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionLayout,
    scale: float,
    form: Disentangled,
    weights: RelativeWeights,
    window: int | None = None,
) -> Tensor:
    """softmax((q_i k_j + q_i K_ij + Q_ij k_j) * scale) v, where K_ij and Q_ij are the rows of the distance of i and j.

    q: [query rows, heads, head_dim]; k, v: [T, heads, head_dim]. Returns [query rows, heads * head_dim] in q's dtype.
    """
    out = torch.empty_like(q)
    for bucket in layout.derived(in_buckets):
        count = len(bucket.blocks)
        queries, keys = gathered(q, bucket.query_rows, count), gathered(k, bucket.key_rows, count)
        bias = _bias(queries, keys, bucket, form, weights) * scale
        mask = bucket.mask(q, window, ())
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            gathered(v, bucket.key_rows, count),
            attn_mask=bias if mask is None else bias + mask,
            scale=scale,
        )
        scattered(attended, bucket.query_rows, out)
    return out.flatten(1)


def bucketed_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float, form: Buckets, biases: Tensor
) -> Tensor:
    """softmax(q_i k_j * scale + b_ij) v, where b_ij is the row of the distance of i and j in `biases`.

    biases: [buckets, heads]; other shapes as in `disentangled_attention`.
    """
    out = torch.empty_like(q)
    for bucket in layout.derived(in_buckets):
        count = len(bucket.blocks)
        bias = biases[form.rows(bucket.distances).to(biases.device)].permute(0, 3, 1, 2).to(q.dtype)
        mask = bucket.mask(q, None, ())
        attended = F.scaled_dot_product_attention(
            gathered(q, bucket.query_rows, count),
            gathered(k, bucket.key_rows, count),
            gathered(v, bucket.key_rows, count),
            attn_mask=bias if mask is None else bias + mask,
            scale=scale,
        )
        scattered(attended, bucket.query_rows, out)
    return out.flatten(1)


def _bias(queries: Tensor, keys: Tensor, bucket: Bucket, form: Disentangled, weights: RelativeWeights) -> Tensor:
    """The bias of logits by distance, before they are scaled: [blocks, heads, queries, keys].

    queries, keys: [blocks, heads, queries or keys, head_dim]
    """
    rows = form.rows(bucket.distances)
    # Short documents read a small part of the tables.
    first, stop = int(rows.min()), int(rows.max()) + 1
    rows = (rows - first).to(queries.device)[:, None]
    shape = (len(queries), queries.shape[1], queries.shape[2], keys.shape[2])
    bias = queries.new_zeros(shape)
    if weights.keys is not None:
        content_to_place = queries @ _by_head(weights.keys[first:stop], queries)
        bias += content_to_place.gather(3, rows.expand(shape))
    if weights.queries is not None:
        place_to_content = keys @ _by_head(weights.queries[first:stop], queries)
        turned = rows.transpose(2, 3).expand(shape[0], shape[1], shape[3], shape[2])
        bias += place_to_content.gather(3, turned).transpose(2, 3)
    return bias


def _by_head(table: Tensor, like: Tensor) -> Tensor:
    """[rows, heads * head_dim] -> [heads, head_dim, rows]."""
    return table.view(len(table), like.shape[1], like.shape[3]).permute(1, 2, 0)

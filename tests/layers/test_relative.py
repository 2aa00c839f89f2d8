"""Which row of a table a distance reads, against transformers."""

from __future__ import annotations

import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from rerankd.layers.relative import Buckets


def test_buckets_are_those_of_mpnet_and_t5() -> None:
    distances = torch.arange(-3000, 3000)
    for count, farthest in ((32, 128), (32, 256), (8, 20)):
        found = Buckets(count, farthest).rows(distances)
        assert set(found.tolist()) == set(range(count)) - {count // 2}  # a key behind has no distance 0
        # Theirs are the place of the key less that of the query.
        mpnet = MPNetEncoder.relative_position_bucket(-distances, num_buckets=count, max_distance=farthest)
        assert torch.equal(found, mpnet)
        t5 = T5Attention._relative_position_bucket(-distances, True, count, farthest)
        assert torch.equal(found, t5)

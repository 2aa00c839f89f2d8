"""Scores by the packages of rerankers' authors, in the Python that has these: `score.py NAME FOLDER < pairs.json`.

NAME is a key of SCORES. The scores are the last line of what is printed, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

Pairs = list[tuple[str, str]]
Score = Callable[[str, Pairs], Any]


def flag_embedding(kind: str, **options: Any) -> Score:
    """A reranker of FlagEmbedding in float32; options: of `compute_score`."""

    def score(folder: str, pairs: Pairs) -> Any:
        import FlagEmbedding

        # Two of them take float16 unless they are told to take bfloat16; the weights are read as float32 after that.
        reranker = getattr(FlagEmbedding, kind)(folder, devices=["cpu"], use_fp16=kind != "FlagLLMReranker")
        reranker.use_fp16 = False
        return reranker.compute_score(pairs, **options)

    return score


def mxbai(folder: str, pairs: Pairs) -> Any:
    """mixedbread's second reranker, one pair at a time."""
    import torch
    from mxbai_rerank import MxbaiRerankV2

    reranker = MxbaiRerankV2(folder, device="cpu", torch_dtype=torch.float32)
    return [float(reranker.predict([query], [document])[0]) for query, document in pairs]


def pylate(folder: str, pairs: Pairs) -> Any:
    """PyLate's MaxSim, one pair at a time."""
    from pylate import models, rank

    model = models.ColBERT(folder, device="cpu")
    queries = model.encode([query for query, _ in pairs], is_query=True, batch_size=1)
    documents = model.encode([document for _, document in pairs], is_query=False, batch_size=1)
    return [
        rank.rerank([[0]], [query], [[document]])[0][0]["score"]
        for query, document in zip(queries, documents, strict=True)
    ]


SCORES: Mapping[str, Score] = {
    "gemma": flag_embedding("FlagLLMReranker"),
    "layerwise": flag_embedding("LayerWiseFlagLLMReranker"),
    "layerwise-3": flag_embedding("LayerWiseFlagLLMReranker", cutoff_layers=[3]),
    "lightweight": flag_embedding("LightWeightFlagLLMReranker"),
    "lightweight-3": flag_embedding("LightWeightFlagLLMReranker", cutoff_layers=[3]),
    "lightweight-compressed": flag_embedding(
        "LightWeightFlagLLMReranker", cutoff_layers=[3], compress_ratio=2, compress_layers=[1, 2, 3]
    ),
    "mxbai": mxbai,
    "pylate": pylate,
}

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    found = SCORES[name](folder, [tuple(pair) for pair in json.load(sys.stdin)])
    print()
    print(json.dumps([float(score) for score in found]))

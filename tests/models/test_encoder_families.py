"""Families of encoders score as transformers' own classes do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GteConfig, GteForSequenceClassification

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import ENCODERS, deberta_v2, distilbert, edit, electra, gte
from tests.references import Pair, cross_encoder_scores
from tests.test_scores import PAIRS, largest_difference, spread

SOME = PAIRS[::2]
by_name = pytest.mark.parametrize(("maker", "options"), [e[1:] for e in ENCODERS], ids=[e[0] for e in ENCODERS])


@torch.inference_mode()
def authors_gte_scores(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """transformers knows no NTK scaling: its class, with the frequencies of the authors' formula."""
    entries = json.loads((folder / "config.json").read_text())
    factor, theta = entries["rope_scaling"]["factor"], entries["rope_theta"]
    plain = {k: v for k, v in entries.items() if k not in ("rope_scaling", "rope_theta", "model_type", "auto_map")}
    config = GteConfig(**plain, rope_parameters={"rope_type": "default", "rope_theta": theta * factor})
    model = GteForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    width = config.hidden_size // config.num_attention_heads
    model.gte.rotary_emb.inv_freq /= factor ** (2 / width)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    return [
        model(**tokenizer(query, document, return_tensors="pt", truncation=True)).logits[0, 0].sigmoid().item()
        for query, document in pairs
    ]


@by_name
def test_float32_scores_equal_transformers(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_checkpoint(maker, **options)
    reference = authors_gte_scores if options.get("form") == "new" else cross_encoder_scores
    original = folder / "original"
    expected = reference(original if original.exists() else folder, SOME)
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        scores = reranker.score(SOME)
    assert len(SOME) >= 40
    assert spread(expected) >= 0.2
    assert largest_difference(scores, expected) <= 1e-5


@by_name
def test_bfloat16_scores_are_near(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_checkpoint(maker, **options, storage=Storage(dtype="bfloat16"))
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        expected = reranker.score(SOME)
    with Reranker(folder, device="cpu", dtype="bfloat16") as reranker:
        scores = reranker.score(SOME)
    assert spread(expected) >= 0.2
    assert largest_difference(scores, expected) <= 0.01


@by_name
def test_an_inspection(make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], options: dict[str, Any]) -> None:
    folder = make_checkpoint(maker, **options)
    inspection = inspect(plan(LoadOptions(str(folder), device="cpu")))
    two = options.get("labels") == 2
    assert inspection.recipe == "cross-encoder"
    assert inspection.head == ("classifier of 2 labels: the share of the second" if two else "classifier of 1 label")
    assert ("have no names" in inspection.why) == two
    assert "panda" in inspection.prompts[0]
    auto_map = "config.json: `auto_map` names code of the folder's own, which is not run"
    assert set(inspection.other_files) <= {"original/"}
    assert set(inspection.not_understood) <= {auto_map}


@pytest.mark.parametrize(
    ("maker", "entries", "said"),
    [
        (deberta_v2, {"conv_kernel_size": 3}, "conv_kernel_size"),
        (deberta_v2, {"relative_attention": False}, "relative_attention"),
        (deberta_v2, {"pos_att_type": "p2c|p2p"}, "pos_att_type"),
        (deberta_v2, {"position_buckets": 2000}, "position_buckets"),
        (deberta_v2, {"position_buckets": 32}, "rel_embeddings"),
        (deberta_v2, {"pooler_hidden_act": "mish"}, "activation is 'mish'"),
        (electra, {"embedding_size": 32}, "embedding_size"),
        (distilbert, {"activation": "swish"}, "hidden_act|activation"),
        (gte, {"logn_attention_scale": True}, "logn_attention_scale"),
        (gte, {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4, "factor": 2, "mixed_b": 0.6}}, "mixed_b"),
    ],
)
def test_what_is_not_computed_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Callable[..., Path], entries: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in filter(Path.is_file, make_checkpoint(maker).iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder, **entries)
    with pytest.raises(ModelError, match=said):
        Reranker(folder, device="cpu", dtype="float32")

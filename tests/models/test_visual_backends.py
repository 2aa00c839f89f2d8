"""The families that see images on every backend, against the same references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch import Tensor

from rerankd import Reranker
from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cuda.backend import CudaBackend
from rerankd.backends.select import Placement
from rerankd.core import Image, RerankRequest, Text
from rerankd.engine.packing import pack
from rerankd.loading import plan
from rerankd.models.architecture import Architecture
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.layerwise_checkpoints import gemma2
from tests.models import test_jina_m0, test_nemotron_vl
from tests.models.test_toy_family import executor
from tests.pairs import picture
from tests.visual_checkpoints import jina_m0, nemotron_vl

CPU = torch.device("cpu")
QUERY = "a page about the moon"
TEXTS = ["The moon is far.", "Nothing."]
PICTURES: list[PIL.Image.Image] = [picture(60, 90, 3), picture(70, 50, 4)]
Content = tuple[Text | Image, ...]


@dataclass(frozen=True)
class Family:
    """A checkpoint, how it is made, the documents, and the scores of an independent implementation."""

    make: Callable[..., Path]
    form: dict[str, Any]
    documents: Sequence[Content]
    scores: Callable[[Path], list[float]]


def m0_scores(folder: Path) -> list[float]:
    reference = test_jina_m0.Reference(folder)
    return [reference.score(QUERY, document) for document in (*TEXTS, *PICTURES)]


def nemotron_scores(folder: Path) -> list[float]:
    reference = test_nemotron_vl.Reference(folder, 64)
    return [reference.score(QUERY, document) for document in ((TEXTS[0], None), (TEXTS[1], PICTURES[0]))]


def qwen3_vl_scores(folder: Path) -> list[float]:
    """By torch's functions in float32, which `test_vision_scores` holds against transformers."""
    with Reranker(folder, device="cpu", dtype="float32", backend="torch") as reranker:
        return [one.score for one in reranker.rerank(QUERY, QWEN3_VL).in_request_order()]


QWEN3_VL: list[Content] = [(Text(TEXTS[0]),), (Image(PICTURES[0]), Text(TEXTS[1])), (Image(PICTURES[1]),)]
FAMILIES = {
    "qwen3-vl-reranker": Family(checkpoints.qwen3_vl, {}, QWEN3_VL, qwen3_vl_scores),
    "jina-reranker-m0": Family(
        jina_m0, {}, [*((Text(text),) for text in TEXTS), *((Image(one),) for one in PICTURES)], m0_scores
    ),
    "llama-nemotron-rerank-vl": Family(
        nemotron_vl, {"side": 64}, [(Text(TEXTS[0]),), (Image(PICTURES[0]), Text(TEXTS[1]))], nemotron_scores
    ),
}


@cache
def expected_scores(name: str, folder: Path) -> list[float]:
    return FAMILIES[name].scores(folder)


BACKENDS = [
    *((name, dtype, near) for name in ("torch", "cpu") for dtype, near in (("float32", 1e-5), ("bfloat16", 0.01))),
    pytest.param("cuda", "float32", 1e-5, marks=pytest.mark.emulator),
    ("npu", "bfloat16", 0.01),
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("backend", "dtype", "near"), BACKENDS)
def test_scores_are_the_authors_on_every_backend(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, name: str, backend: str, dtype: str, near: float
) -> None:
    family = FAMILIES[name]
    folder = make_checkpoint(family.make, storage=Storage(dtype="bfloat16"), **family.form)
    expected = torch.tensor(expected_scores(name, folder))
    assert expected.std() > 0.01
    chosen = executor(backend, dtype, monkeypatch)
    placement = chosen if isinstance(chosen, Placement) else Placement((chosen,), batch_tokens=8192)
    planned = replace(plan(LoadOptions(str(folder), device="cpu")), placement=placement)
    model, loader = planned.load_part(), planned.media_loader()
    assert loader is not None
    with loader, torch.inference_mode():
        request = RerankRequest((Text(QUERY),), tuple(family.documents))
        group = planned.prompts.build(request, loader.load_blocking(request).visuals)
        logits: Tensor = model(pack([group], model.shares_prefix, chosen.device))
    assert (logits.sigmoid() - expected).abs().max() < near


def test_a_backend_that_cannot_compress_says_what_it_lacks(make_checkpoint: MakeCheckpoint) -> None:
    """The layers of the lightweight reranker are those of Gemma 2, with or without compression."""
    entries = {"compress_ratio": 2, "compress_layers": [1]}
    planned = plan(LoadOptions(str(make_checkpoint(gemma2)), device="cpu", hf_overrides=entries))
    assert isinstance(planned.architecture, Architecture)
    spec = planned.architecture.spec(planned.config)
    assert CpuBackend(torch.float32).supports(spec) == "attention windows"
    assert CudaBackend(CPU, torch.float32).supports(spec) == "norms behind attention and MLP"
    assert planned.backend()[0] == "torch"

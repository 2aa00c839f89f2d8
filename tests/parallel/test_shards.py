"""A model in parts: the sum of what its ranks add is what the whole model adds, for each way to split a layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from rerankd.backends.cuda.backend import CudaBackend
from rerankd.backends.cuda.linear import stacked
from rerankd.backends.ranks import Ranks
from rerankd.backends.select import Placement, place
from rerankd.backends.torch.backend import TorchBackend
from rerankd.core import Image, ModelError, PackedBatch, RerankRequest, Visuals, text_content
from rerankd.engine.packing import pack
from rerankd.layers.shard import Shard
from rerankd.layers.spec import Affine, LayerWeights, TransformerSpec
from rerankd.loading import Plan, plan
from rerankd.media.visual import ResizedVisual, VisionFormat
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.options import LoadOptions
from tests import checkpoints, decoder_checkpoints, encoder_checkpoints, modernbert_checkpoints, visual_checkpoints
from tests.backends.dense import RandomWeights
from tests.backends.test_transformers import SPECS, Packed
from tests.conftest import MakeCheckpoint

CPU = torch.device("cpu")
RECIPES = {"qwen2": "mxbai-rerank", "gemma": "bge-reranker-gemma"}
"""Of the checkpoints whose class is one of chat models too."""
REQUEST = RerankRequest(
    text_content("what is panda?"),
    tuple(map(text_content, ("hi", "The giant panda is a bear of China."))),
)


class Meeting:
    """Where ranks that are threads of one process sum up. One of them computes at a time."""

    def __init__(self, size: int) -> None:
        self.barrier, self.turn = threading.Barrier(size, timeout=60), threading.Lock()
        self.parts: list[Tensor | None] = [None] * size

    def sum(self, rank: int, x: Tensor) -> Tensor:
        self.parts[rank] = x
        self.turn.release()
        self.barrier.wait()
        total = torch.stack([part for part in self.parts if part is not None]).sum(0)
        self.barrier.wait()
        self.turn.acquire()
        return total


class ThreadRanks(Ranks):
    def __init__(self, shard: Shard, meeting: Meeting) -> None:
        super().__init__(shard)
        self.meeting = meeting

    def sum(self, x: Tensor) -> Tensor:
        self.sums += 1
        return self.meeting.sum(self.shard.rank, x)


def planned(folder: Path, **options: object) -> Plan:
    return plan(LoadOptions(str(folder), device="cpu", dtype="float32", backend="torch", **options))  # type: ignore[arg-type]


def batch_of(made: Plan, shares_prefix: bool) -> PackedBatch:
    """The request's batch; of a model that sees, with a picture."""
    request, visuals = REQUEST, None
    if made.choice.recipe.supports_vision:
        form = VisionFormat.from_folder(made.folder)
        size = (2 * form.factor, 3 * form.factor, 3)
        picture = ResizedVisual.of_image(numpy.random.default_rng(0).integers(0, 255, size, dtype=numpy.uint8), form)
        request = replace(REQUEST, documents=(*REQUEST.documents, (Image(b""),)))
        visuals = Visuals((), ((), (), (picture,)))
    return pack([made.prompts.build(request, visuals)], shares_prefix, CPU)


def logits_of_ranks(made: Plan, size: int, backend: Callable[[Ranks], TorchBackend | CudaBackend]) -> list[Tensor]:
    meeting = Meeting(size)

    def run(rank: int) -> Tensor:
        ranks = ThreadRanks(Shard(rank, size), meeting)
        with meeting.turn, torch.inference_mode():
            model = replace(made, placement=Placement((backend(ranks),), 8192, ranks=ranks)).load_part()
            logits = model(batch_of(made, model.shares_prefix))
        assert ranks.sums
        return logits

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def by_torch(ranks: Ranks) -> TorchBackend:
    return TorchBackend(CPU, torch.float32, ranks=ranks)


def by_cuda(ranks: Ranks) -> CudaBackend:
    return CudaBackend(CPU, torch.float32, ranks=ranks)


@pytest.mark.parametrize(
    ("maker", "size", "backend"),
    [
        (checkpoints.qwen3, 2, by_torch),
        (checkpoints.qwen3, 4, by_torch),  # more ranks than heads of keys
        (decoder_checkpoints.nemotron, 2, by_cuda),
        (decoder_checkpoints.qwen2, 2, by_torch),  # biases of queries, keys and values
        (decoder_checkpoints.gemma, 2, by_torch),
        (checkpoints.qwen3_vl, 2, by_torch),
        (visual_checkpoints.jina_m0, 2, by_torch),
        (checkpoints.xlmr, 4, by_torch),
        (checkpoints.xlmr, 2, by_cuda),
        (encoder_checkpoints.jina_v2, 2, by_torch),  # queries, keys and values in one, with biases
        (encoder_checkpoints.deberta_v2, 2, by_torch),  # tables of each head
        (encoder_checkpoints.mpnet, 2, by_torch),  # biases of each head
        (encoder_checkpoints.gte, 2, by_torch),  # the gate last
        (modernbert_checkpoints.modernbert, 2, by_torch),
    ],
)
def test_the_ranks_of_a_model_score_as_the_whole_does(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], size: int, backend: Callable[[Ranks], TorchBackend]
) -> None:
    made = planned(make_checkpoint(maker), recipe=RECIPES.get(maker.__name__))
    model = made.load_part()
    with torch.inference_mode():
        expected = model(batch_of(made, model.shares_prefix))
    assert expected.std() > 1e-3
    for logits in logits_of_ranks(made, size, backend):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


class Half(RandomWeights):
    """The weights of half of each head's layer: of as many heads of keys as of queries, and a gated MLP."""

    rank = 0

    def layers(self) -> Iterable[LayerWeights]:
        for layer in super().layers():
            rows = (self._half(layer.query), *map(self._half, _halves(layer.key_value)))
            up = map(self._half, _halves(layer.up))
            yield replace(
                layer, query=rows[0], key_value=stacked(*rows[1:]), up=stacked(*up), out=self._inputs(layer.out),
                down=self._inputs(layer.down),
            )  # fmt: skip

    def _half(self, affine: Affine) -> Affine:
        return _halves(affine)[self.rank]

    def _inputs(self, affine: Affine) -> Affine:
        return Affine(affine.weight.chunk(2, 1)[self.rank], affine.bias if self.rank == 0 else None)


class OtherHalf(Half):
    rank = 1


def _halves(affine: Affine) -> list[Affine]:
    biases = (None, None) if affine.bias is None else affine.bias.chunk(2)
    return [Affine(weight, bias) for weight, bias in zip(affine.weight.chunk(2), biases, strict=True)]


@pytest.mark.parametrize("backend", [by_torch, by_cuda])
def test_each_rank_has_the_factors_of_its_heads(backend: Callable[[Ranks], TorchBackend | CudaBackend]) -> None:
    """ALiBi's, which differ by head."""
    spec, packed, meeting = SPECS["jina-bert"], Packed(causal=False), Meeting(2)

    def run(rank: int) -> Tensor:
        weights = (Half, OtherHalf)[rank](spec, positioned=True)
        with meeting.turn, torch.inference_mode():
            made = backend(ThreadRanks(Shard(rank, 2), meeting)).transformer(spec, weights)
            return made(packed.tokens, packed.layout)

    whole = by_torch(Ranks()).transformer(spec, RandomWeights(spec, positioned=True))(packed.tokens, packed.layout)
    with ThreadPoolExecutor(2) as threads:
        for states in threads.map(run, range(2)):
            torch.testing.assert_close(states, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["xlmr", "qwen3"])
def test_a_rank_reads_its_part_of_linear_layers_only(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = make_checkpoint(getattr(checkpoints, name))
    whole: list[str] = []
    read = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: (whole.append(name), read(self, name))[1])
    ranks = Ranks(Shard(1, 2))
    model = replace(planned(folder), placement=Placement((by_torch(ranks),), 8192, ranks=ranks)).load_part()
    assert not [name for name in whole if "layer" in name and "norm" not in name.lower() and name.endswith("weight")]
    layers = model.transformer.layers  # type: ignore[attr-defined]
    spec = model.spec.layers[0]  # type: ignore[attr-defined]
    for layer in layers:
        own = layer.weights
        assert own.query.weight.shape == (spec.query_width // 2, 64)
        assert own.out.weight.shape == (64, spec.query_width // 2)
        assert own.down.weight.shape == (64, spec.mlp // 2)
        assert own.out.bias is None
        assert own.down.bias is None


@pytest.mark.parametrize(
    ("spec", "size", "lacking"),
    [
        (SPECS["bert"], 2, None),
        (SPECS["bert"], 4, "2 heads in 4 equal parts"),
        (SPECS["qwen3-odd-heads"], 2, "3 heads of keys in 2 equal parts"),
        (SPECS["gemma"], 4, None),
        (TransformerSpec((replace(SPECS["bert"].layers[0], mlp=129),)), 2, "an MLP of width 129 in 2 equal parts"),
    ],
)
def test_layers_that_do_not_split_evenly_are_refused(spec: TransformerSpec, size: int, lacking: str | None) -> None:
    for backend in (by_torch(Ranks(Shard(0, size))), by_cuda(Ranks(Shard(0, size)))):
        assert backend.supports(spec) == lacking


def test_no_process_is_started_for_what_cannot_be_split(bert_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"the backend torch does not support 4 heads in 3 equal parts"):
        planned(bert_checkpoint, tensor_parallel_size=3).load()
    with pytest.raises(ModelError, match="at least 1, not 0"):
        planned(bert_checkpoint, tensor_parallel_size=0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"device": "cpu:0"}, "leave the number out"),
        ({"device": "cpu", "backend": "cpu"}, "choose --backend torch without a quantization"),
        ({"device": "cpu", "quantization": "int8"}, "choose --backend torch without a quantization"),
    ],
)
def test_places_that_several_processes_cannot_share(arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        place(**arguments, shard=Shard(0, 2))
    assert place("cpu", shard=Shard(0, 2)).backends[0].name == "torch"

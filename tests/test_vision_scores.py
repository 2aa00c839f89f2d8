"""Pictures, videos and texts from request to score, against transformers' processor and model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerankd import Reranker
from rerankd.core import RerankRequest, Text
from rerankd.engine.packing import pack
from tests import checkpoints, vision
from tests.checkpoints import NO, YES
from tests.conftest import MakeCheckpoint
from tests.media.patterns import pattern
from tests.vision import Piece


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(pattern(width, height, seed))


SQUARE, WIDE, TALL = picture(96, 96, 1), picture(333, 97, 2), picture(70, 410, 3)
TINY, LARGE = picture(10, 10, 4), picture(4000, 3000, 5)
FRAMES = vision.frame_list(3)

QUERIES: dict[str, list[Piece]] = {
    "text": ["a dog at the beach"],
    "image": [SQUARE],
    "text and image": ["find what looks like this: ", WIDE],
    "image and text": [TALL, " from another side", SQUARE],
}


def documents(folder: Path) -> dict[str, list[Piece]]:
    return {
        "text": ["A golden retriever runs along the water."],
        "nothing": [],
        "image": [WIDE],
        "the query's image": [SQUARE],
        "images": [SQUARE, TALL, SQUARE],
        "text before": ["Look: ", TALL],
        "text between": [WIDE, " and then ", TINY],
        "text after": [TALL, " is what I saw.\n"],
        "tiny": [TINY],
        "frames": [FRAMES],
        "file and text": [vision.film_file(folder), "the film"],
        "video and image": [vision.frame_list(2, 7), WIDE, "both"],
    }


Case: TypeAlias = tuple[list[Piece], list[Piece]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """48 pairs, and the largest picture with a text and with a picture; those of a query one after the other."""
    listed = documents(tmp_path_factory.mktemp("films"))
    pairs = [(query, document) for query in QUERIES.values() for document in listed.values()]
    pairs += [(QUERIES["text"], [LARGE]), (QUERIES["image"], ["large: ", LARGE])]
    return [pair for query in QUERIES.values() for pair in pairs if pair[0] is query]


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    """Its weights are bfloat16's, so that one reference in float32 serves both dtypes."""
    return make_checkpoint(checkpoints.qwen3_vl, storage=checkpoints.Storage(dtype="bfloat16"))


@dataclass(frozen=True)
class Reference:
    """What transformers makes of a pair."""

    inputs: dict[str, torch.Tensor]
    score: float


@pytest.fixture(scope="module")
def expected(folder: Path, cases: list[Case]) -> list[Reference]:
    processor, model = vision.processor(folder), vision.load(folder)
    inputs = [vision.inputs(processor, query, document) for query, document in cases]
    return [Reference(given, vision.score(model, given)) for given in inputs]


def by_query(cases: Sequence[Case]) -> list[RerankRequest]:
    """One request for each query, so that what is shared is shared."""
    return [
        RerankRequest(vision.content(query), tuple(vision.content(d) for q, d in cases if q is query))
        for query in QUERIES.values()
    ]


def scores(folder: Path, requests: Sequence[RerankRequest], dtype: str) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        submitted = [reranker.submit(request) for request in requests]
        results = [reranker.collect(one) for one in submitted]
    return [document.score for result in results for document in result.in_request_order()]


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_scores_equal_transformers(
    folder: Path, cases: list[Case], expected: list[Reference], dtype: str, tolerance: float
) -> None:
    wanted = [one.score for one in expected]
    assert len(wanted) == 50
    assert max(wanted) - min(wanted) > 0.15
    assert largest_difference(scores(folder, by_query(cases), dtype), wanted) <= tolerance


def test_prompts_and_pixels_are_the_reference_processors(
    folder: Path, cases: list[Case], expected: list[Reference]
) -> None:
    with Reranker(folder, device="cpu") as reranker:
        groups = [reranker.submit(request).group for request in by_query(cases)]
    assert [len(group.prefix.visuals) for group in groups] == [0, 1, 1, 2], "the query's pictures are shared"
    prompts = [(group.prefix, suffix) for group in groups for suffix in group.suffixes]
    for (prefix, suffix), reference in zip(prompts, expected, strict=True):
        assert prefix.token_ids + suffix.token_ids == reference.inputs["input_ids"][0].tolist()
        visuals = [*prefix.visuals, *suffix.visuals]
        for key, is_video in (("pixel_values", False), ("pixel_values_videos", True)):
            shown = [visual.pixel_values() for visual in visuals if bool(visual.seconds) == is_video]
            assert bool(shown) == (key in reference.inputs)
            if shown:
                assert torch.allclose(torch.cat(shown), reference.inputs[key], atol=1e-6, rtol=0)


def test_a_text_scores_as_a_text_whatever_is_beside_it(qwen3_vl_checkpoint: Path) -> None:
    query, text = "a dog at the beach", "A golden retriever runs along the water."
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as reranker:
        alone = reranker.rerank(query, [text]).documents[0]
        mixed = reranker.rerank(query, [vision.content([WIDE]), (Text(text),), vision.content([FRAMES])])
    beside = mixed.in_request_order()[1]
    assert beside.score == pytest.approx(alone.score, abs=1e-6)
    assert beside.prompt_tokens == alone.prompt_tokens


@torch.inference_mode()
def test_hidden_states_of_every_layer(qwen3_vl_checkpoint: Path) -> None:
    """A query with a picture and two documents, packed: what each layer reads is what transformers' reads."""
    query = QUERIES["image and text"]
    listed: list[list[Piece]] = [["x", WIDE, "y"], [FRAMES, TINY, "z"]]
    reference, theirs = vision.processor(qwen3_vl_checkpoint), vision.load(qwen3_vl_checkpoint)
    read: list[torch.Tensor] = []
    for layer in theirs.model.language_model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: read.append((args or (kwargs["hidden_states"],))[0][0].clone()), with_kwargs=True
        )
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as reranker:
        asked = RerankRequest(vision.content(query), tuple(map(vision.content, listed)))
        submitted = reranker.submit(asked)
        reranker.collect(submitted)  # the engine's own run is over when the layers are replaced
        group = submitted.group
        model = reranker._engine.model
        decoder = model.decoder  # type: ignore[attr-defined]
        ours: list[torch.Tensor] = []

        def recorded(layer):  # type: ignore[no-untyped-def]
            def call(x, *rest, **more):  # type: ignore[no-untyped-def]
                ours.append(x.clone())
                return layer(x, *rest, **more)

            return call

        decoder.layers = [recorded(layer) for layer in decoder.layers]
        batch = pack([group], "decoder", torch.device("cpu"))
        model(batch)
    assert len(group.prefix.visuals) == 2
    (packed,) = batch.groups
    for document, span in zip(listed, packed.suffixes, strict=True):
        read.clear()
        vision.score(theirs, vision.inputs(reference, query, document))
        rows = [*range(len(packed.prefix)), *range(span.start, span.stop)]
        assert len(read) == len(ours) == 3
        for depth, (theirs_in, ours_in) in enumerate(zip(read, ours, strict=True)):
            apart = (ours_in[rows] - theirs_in).abs().max() / theirs_in.abs().max()
            assert apart < 1e-5, f"what layer {depth} reads differs"


def rewritten(source: Path, folder: Path, tensors: Mapping[str, torch.Tensor], architecture: str) -> Path:
    shutil.copytree(source, folder)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    return folder


def test_other_forms_of_a_checkpoint_score_the_same(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, cases: list[Case]
) -> None:
    folder = make_checkpoint(checkpoints.qwen3_vl, tied=False)
    requests = by_query(cases[:6])[:1]
    plain = scores(folder, requests, "float32")
    tensors = load_file(folder / "model.safetensors")
    converted = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    head = tensors["lm_head.weight"]
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
    }
    assert older.keys().isdisjoint(name for name in tensors if name != "lm_head.weight")
    forms = {
        "old-names": (older, "Qwen3VLForConditionalGeneration"),
        "one-row": (converted | {"score.weight": head[[YES]] - head[[NO]]}, "Qwen3VLForSequenceClassification"),
        "two-rows": (converted | {"score.weight": head[[NO, YES]]}, "Qwen3VLForSequenceClassification"),
    }
    for name, (form, architecture) in forms.items():
        other = rewritten(folder, tmp_path / name, form, architecture)
        assert largest_difference(scores(other, requests, "float32"), plain) < 1e-5, name

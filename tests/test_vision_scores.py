"""Pictures, videos and texts from request to score, against transformers' processor and model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerankd import Reranker
from rerankd.core import RerankRequest, Text
from rerankd.engine.packing import pack
from tests import checkpoints, vision
from tests.checkpoints import NO, YES
from tests.conftest import MakeCheckpoint
from tests.pairs import FRAMES, QUERIES, WIDE, Film, Pair, Piece, pairs


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """All but videos whose frames are resized, those of a query one after the other."""
    listed = pairs(tmp_path_factory.mktemp("films"))
    return {name: pair for name, pair in listed.items() if all(map(_shown, (*pair[0], *pair[1])))}


def _shown(piece: Piece) -> bool:
    return not isinstance(piece, Film) or bool(piece.shown)


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    """Its weights are bfloat16's, so that one reference in float32 serves both dtypes."""
    return make_checkpoint(checkpoints.qwen3_vl, storage=checkpoints.Storage(dtype="bfloat16"))


@pytest.fixture(scope="module")
def inputs(folder: Path, cases: dict[str, Pair]) -> list[dict[str, torch.Tensor]]:
    """What the authors' script gives the model for each pair, with the golden files' token ids."""
    processor, golden = vision.processor(folder), vision.golden_prompts()
    return [vision.inputs(processor, *pair, golden[name]["ids"].tolist()) for name, pair in cases.items()]


@pytest.fixture(scope="module")
def expected(folder: Path, inputs: list[dict[str, torch.Tensor]]) -> list[float]:
    """transformers' scores."""
    model = vision.load(folder)
    return [vision.score(model, given) for given in inputs]


def scores(folder: Path, requests: Sequence[RerankRequest], dtype: str) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        submitted = [reranker.submit(request) for request in requests]
        results = [reranker.collect(one) for one in submitted]
    return [document.score for result in results for document in result.in_request_order()]


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_scores_equal_transformers(
    folder: Path, cases: dict[str, Pair], expected: list[float], dtype: str, tolerance: float
) -> None:
    assert len(expected) > 60
    assert max(expected) - min(expected) > 0.15
    assert largest_difference(scores(folder, vision.by_query(cases.values()), dtype), expected) <= tolerance


def test_the_8b_models_vision_tower(
    make_checkpoint: MakeCheckpoint, cases: dict[str, Pair], inputs: list[dict[str, torch.Tensor]]
) -> None:
    """Its heads are 72 wide, which is no power of two."""
    folder = make_checkpoint(checkpoints.qwen3_vl, size="8b-vision", tied=False)
    model = vision.load(folder)
    some = {name: cases[name] for name in ("image | text between", "image | frames", "image | file and text")}
    expected = [vision.score(model, given) for name, given in zip(cases, inputs, strict=True) if name in some]
    assert largest_difference(scores(folder, vision.by_query(some.values()), "float32"), expected) <= 1e-4


def test_pixels_are_the_reference_processors(
    folder: Path, cases: dict[str, Pair], inputs: list[dict[str, torch.Tensor]]
) -> None:
    groups = vision.groups(folder, cases.values())
    prompts = [(group.prefix, suffix) for group in groups for suffix in group.suffixes]
    for (prefix, suffix), given in zip(prompts, inputs, strict=True):
        visuals = [*prefix.visuals, *suffix.visuals]
        for key, is_video in (("pixel_values", False), ("pixel_values_videos", True)):
            shown = [visual.pixel_values() for visual in visuals if bool(visual.seconds) == is_video]
            assert bool(shown) == (key in given)
            if shown:
                assert torch.allclose(torch.cat(shown), given[key], atol=1e-6, rtol=0)


def test_positions_are_the_same_in_transformers_of_today(
    folder: Path, cases: dict[str, Pair], inputs: list[dict[str, torch.Tensor]]
) -> None:
    """So that its scores are those of the authors' time, whose positions the golden files hold."""
    golden, find = vision.golden_prompts(), vision.load(folder).model.get_rope_index
    for name, given in zip(cases, inputs, strict=True):
        positions, _ = find(**{key: value for key, value in given.items() if not key.startswith("pixel")})
        assert torch.equal(positions[:, 0], torch.from_numpy(golden[name]["positions"]).long()), name


def test_a_text_scores_as_a_text_whatever_is_beside_it(qwen3_vl_checkpoint: Path) -> None:
    query, text = "a dog at the beach", "A golden retriever runs along the water."
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as reranker:
        alone = reranker.rerank(query, [text]).documents[0]
        mixed = reranker.rerank(query, [vision.content([WIDE]), (Text(text),), vision.content([FRAMES])])
    beside = mixed.in_request_order()[1]
    assert beside.score == pytest.approx(alone.score, abs=1e-6)
    assert beside.prompt_tokens == alone.prompt_tokens


@torch.inference_mode()
def test_hidden_states_of_every_layer(qwen3_vl_checkpoint: Path, cases: dict[str, Pair]) -> None:
    """A query with a picture and two documents, packed: what each layer reads is what transformers' reads."""
    query = QUERIES["image and text"]
    names = ("text around", "frames, image and text")
    golden = vision.golden_prompts()
    listed = [cases[f"image and text | {name}"][1] for name in names]
    reference, theirs = vision.processor(qwen3_vl_checkpoint), vision.load(qwen3_vl_checkpoint)
    read: list[torch.Tensor] = []
    for layer in theirs.model.language_model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: read.append((args or (kwargs["hidden_states"],))[0][0].clone()), with_kwargs=True
        )
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32", backend="torch") as reranker:
        asked = RerankRequest(vision.content(query), tuple(map(vision.content, listed)))
        submitted = reranker.submit(asked)
        reranker.collect(submitted)  # the engine's own run is over when the layers are replaced
        group = submitted.group
        model = reranker._engine.model
        decoder = model.transformer  # type: ignore[attr-defined]
        ours: list[torch.Tensor] = []

        class Recorded:
            """A layer that notes what it reads."""

            def __init__(self, layer: Any) -> None:
                self.layer = layer

            def __call__(self, x: torch.Tensor, *rest: Any) -> Any:
                ours.append(x.clone())
                return self.layer(x, *rest)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.layer, name)

        decoder.layers = [Recorded(layer) for layer in decoder.layers]
        batch = pack([group], model.shares_prefix, torch.device("cpu"))
        model(batch)
    assert len(group.prefix.visuals) == 2
    (packed,) = batch.groups
    for name, document, span in zip(names, listed, packed.suffixes, strict=True):
        read.clear()
        ids = golden[f"image and text | {name}"]["ids"].tolist()
        vision.score(theirs, vision.inputs(reference, query, document, ids))
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
    make_checkpoint: MakeCheckpoint, tmp_path: Path, cases: dict[str, Pair]
) -> None:
    folder = make_checkpoint(checkpoints.qwen3_vl, tied=False)
    requests = vision.by_query(list(cases.values())[:6])
    plain = scores(folder, requests, "float32")
    tensors = load_file(folder / "model.safetensors")
    converted = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    head = tensors["lm_head.weight"]
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
    }
    assert older.keys().isdisjoint(name for name in tensors if name != "lm_head.weight")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    forms = {
        "old-names": (older, "Qwen3VLForConditionalGeneration"),
        "bare-names": (bare, "Qwen3VLForConditionalGeneration"),
        "one-row": (converted | {"score.weight": head[[YES]] - head[[NO]]}, "Qwen3VLForSequenceClassification"),
        "two-rows": (converted | {"score.weight": head[[NO, YES]]}, "Qwen3VLForSequenceClassification"),
    }
    for name, (form, architecture) in forms.items():
        other = rewritten(folder, tmp_path / name, form, architecture)
        assert largest_difference(scores(other, requests, "float32"), plain) < 1e-5, name

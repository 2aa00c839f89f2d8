"""jina-reranker-m0 against transformers' Qwen2-VL and its image processor, under the authors' rule."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rerankd import InvalidRequest, ModelError, Reranker, RerankResult
from rerankd.core import Image, RerankRequest, Text, Video, text_content
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from rerankd.server.settings import Settings
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import edit
from tests.models.test_recipes import refusal
from tests.pairs import LARGE, SQUARE, TALL, TINY, WIDE, picture
from tests.server.fakes import running
from tests.texts import DOCUMENTS, QUERIES, words
from tests.visual_checkpoints import jina_m0

Side = str | PIL.Image.Image
STRIP, HIGH = picture(1500, 9, 6), picture(12, 700, 7)
"""Pictures with a side below half a token, which transformers' rule makes smaller than qwen-vl-utils' does."""
CLEAR = PIL.Image.merge("RGBA", (*picture(60, 90, 8).split(), picture(60, 90, 9).getchannel("R")))
ASKED: list[Side] = [*QUERIES[:2], "", SQUARE, WIDE]
READ: list[Side] = [*DOCUMENTS[:4], QUERIES[0], SQUARE, TALL, TINY, STRIP, HIGH, CLEAR]
PAIRS: list[tuple[Side, Side]] = [(query, document) for query in ASKED for document in READ] + [(ASKED[0], LARGE)]


class Reference:
    """`compute_score` of the authors' `modeling.py`, one pair at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
        self.images = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=602112, patch_size=14, merge_size=2, **clip)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in load_file(self.folder / "model.safetensors").items()}

    @cached_property
    def model(self) -> Any:
        model = Qwen2VLModel(Qwen2VLConfig.from_pretrained(self.folder)).eval()
        own = {
            name.replace("model.", "language_model.", 1) if name.startswith("model.") else name: tensor
            for name, tensor in self.weights.items()
            if not name.startswith("score.")
        }
        model.load_state_dict(own)
        return model

    def inputs(self, query: Side, document: Side, query_first: bool = False, mark: bool = True) -> dict[str, Tensor]:
        sides = {"Document": document, "Query": query}
        if query_first:
            sides = dict(reversed(sides.items()))
        shown = [side for side in sides.values() if not isinstance(side, str)]
        given = dict(self.images(images=shown, return_tensors="pt")) if shown else {}
        counts = [int(grid.prod()) // 4 for grid in given.get("image_grid_thw", ())]
        left = iter(counts)
        written = [
            f"**{name}**:\n"
            + (side if isinstance(side, str) else f"<|vision_start|>{'<|image_pad|>' * next(left)}<|vision_end|>")
            for name, side in sides.items()
        ]
        ids = self.tokenizer("\n".join(written), truncation=True, max_length=10239)["input_ids"] + [100] * mark
        tokens = torch.tensor([ids])
        return {
            "input_ids": tokens, "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == 151655).int(), **given,
        }  # fmt: skip

    @torch.inference_mode()
    def score(self, query: Side, document: Side, bias: float = 2.65, **rule: bool) -> float:
        last = self.model(**self.inputs(query, document, **rule)).last_hidden_state[0, -1]
        inner = torch.relu(self.weights["score.0.weight"] @ last + self.weights["score.0.bias"])
        logit = self.weights["score.2.weight"] @ inner + self.weights["score.2.bias"]
        return float((logit - bias).sigmoid())


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    """Its weights are bfloat16's, so that one reference in float32 serves both dtypes."""
    return make_checkpoint(jina_m0, storage=Storage(dtype="bfloat16"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[float]:
    return [reference.score(*pair) for pair in PAIRS]


def content(side: Side) -> tuple[Text | Image, ...]:
    return (Text(side),) if isinstance(side, str) else (Image(side),)


def asked() -> list[RerankRequest]:
    """A request for each query, so that documents are packed together."""
    return [
        RerankRequest(content(query), tuple(content(document) for own, document in PAIRS if own is query))
        for query in ASKED
    ]


def in_order(result: RerankResult) -> list[float]:
    return [document.score for document in result.in_request_order()]


def found(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    """The scores of PAIRS, of which the last is of the first query."""
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        first, *others = [in_order(reranker.collect(reranker.submit(request))) for request in asked()]
    return [*first[:-1], *(score for scores in others for score in scores), first[-1]]


@pytest.mark.parametrize(
    ("dtype", "backend", "near"), [("float32", "auto", 1e-5), ("float32", "torch", 1e-5), ("bfloat16", "auto", 0.01)]
)
def test_scores_are_the_authors(folder: Path, expected: list[float], dtype: str, backend: str, near: float) -> None:
    assert len(PAIRS) > 50
    assert max(expected) - min(expected) >= 0.2
    assert found(folder, dtype, backend=backend) == pytest.approx(expected, abs=near)


def test_another_rule_gives_other_scores(reference: Reference, expected: list[float]) -> None:
    few = list(range(0, len(PAIRS), 6))
    rules: list[dict[str, Any]] = [{"bias": 0.0}, {"mark": False}, {"query_first": True}]
    for rule in rules:
        other = [reference.score(*PAIRS[i], **rule) for i in few]
        assert max(abs(a - expected[i]) for i, a in zip(few, other, strict=True)) > 0.02, rule


def test_prompts_and_pixels_are_the_authors(folder: Path, reference: Reference) -> None:
    planned = plan(LoadOptions(str(folder), device="cpu"))
    loader = planned.media_loader()
    assert loader is not None
    with loader:
        groups = [planned.prompts.build(request, loader.load_blocking(request).visuals) for request in asked()]
    prompts = [(group.prefix, suffix) for group in groups for suffix in group.suffixes]
    last = prompts.pop(len(READ))
    for (prefix, suffix), pair in zip([*prompts, last], PAIRS, strict=True):
        given = reference.inputs(*pair)
        assert prefix.token_ids + suffix.token_ids == given["input_ids"][0].tolist()
        visuals = [*prefix.visuals, *suffix.visuals]
        assert [list(visual.grid) for visual in visuals] == [list(grid) for grid in given.get("image_grid_thw", ())]
        if visuals:
            pixels = torch.cat([visual.pixel_values() for visual in visuals])
            torch.testing.assert_close(pixels, given["pixel_values"], atol=1e-6, rtol=0)


def test_a_long_document_is_cut_as_the_authors_cut_it(folder: Path, reference: Reference) -> None:
    query, long = QUERIES[1], words(12000, 4)
    kept = reference.tokenizer(long, truncation=True, max_length=9728)["input_ids"]
    expected = reference.inputs(query, reference.tokenizer.decode(kept))["input_ids"][0].tolist()
    prompts = plan(LoadOptions(str(folder), device="cpu")).prompts
    group = prompts.build(RerankRequest(text_content(query), (text_content(long), text_content("short"))))
    assert group.prefix.token_ids + group.suffixes[0].token_ids == expected
    assert (group.truncated, prompts.max_tokens) == ((True, False), 10240)
    longer = plan(LoadOptions(str(folder), device="cpu", max_model_len=20000)).prompts
    assert longer.build(RerankRequest(text_content(query), (text_content(long),))).truncated == (False,)


def test_a_prompt_that_is_cut_keeps_its_query_and_its_mark(folder: Path, reference: Reference) -> None:
    prompts = plan(LoadOptions(str(folder), device="cpu", max_model_len=60)).prompts
    group = prompts.build(RerankRequest(text_content(QUERIES[1]), (text_content(words(300, 2)),)))
    ids = group.prefix.token_ids + group.suffixes[0].token_ids
    assert len(ids) == 60
    assert ids[-1] == 100
    assert reference.tokenizer.decode(ids[:-1]).endswith(f"\n**Query**:\n{QUERIES[1]}")


def test_a_folder_that_transformers_saved(make_checkpoint: MakeCheckpoint, folder: Path, expected: list[float]) -> None:
    saved = make_checkpoint(jina_m0, form="saved", storage=Storage(dtype="bfloat16"))
    with Reranker(saved, device="cpu", dtype="float32") as reranker:
        scores = in_order(reranker.collect(reranker.submit(asked()[0])))
    assert scores[:-1] == pytest.approx(expected[: len(READ)], abs=1e-5)


def test_an_inspection(folder: Path) -> None:
    inspection = inspect(plan(LoadOptions(str(folder), device="cpu")))
    assert (inspection.recipe, inspection.tokens, inspection.activation) == ("jina-reranker-m0", {"§": 100}, "sigmoid")
    assert inspection.head == "two linear layers at the token '§' behind the prompt, less 2.65"
    assert inspection.prompts[0].startswith("**Document**:\nThe giant panda is a bear.\n**Query**:\nwhat is panda?")
    assert (inspection.max_tokens, inspection.positions) == (10240, 32768)
    assert inspection.not_understood == ("config.json: `auto_map` names code of the folder's own, which is not run",)


ODD: list[tuple[Sequence[Any], str]] = [
    ([Image(SQUARE), Text("a dog")], "one image"),
    ([Text("a dog"), Image(SQUARE)], "one image"),
    ([Image(SQUARE), Image(WIDE)], "one image"),
    ([Video([SQUARE, SQUARE])], "no videos"),
    ([Video("film.mp4", fps=2)], "no videos"),
]


@pytest.mark.parametrize(("parts", "said"), ODD)
def test_contents_that_the_authors_do_not_score_are_refused(folder: Path, parts: Sequence[Any], said: str) -> None:
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        with pytest.raises(InvalidRequest, match=rf"query.*{said}"):
            reranker.rerank(list(parts), ["a text"])
        with pytest.raises(InvalidRequest, match=rf"documents\[1\].*{said}"):
            reranker.rerank("a text", ["a text", list(parts)])
        result = reranker.rerank("a text", ["a text", list(parts)], on_error="skip")
    assert ([document.index for document in result.documents], list(result.failed)) == ([0], [1])


def test_a_request_says_how_large_images_are(folder: Path) -> None:
    def tokens(part: Image, **options: Any) -> int:
        planned = plan(LoadOptions(str(folder), device="cpu", **options))
        loader = planned.media_loader()
        assert loader is not None
        with loader:
            (shown,) = loader.load_blocking(RerankRequest(text_content("q"), ((part,),))).documents[0]
        return shown.tokens_per_step

    assert tokens(Image(LARGE)) == 32 * 24
    assert tokens(Image(LARGE, max_pixels=28**2 * 100)) == 11 * 8
    assert tokens(Image(LARGE), media_sizing={"max_pixels": 28**2 * 100}) == 11 * 8
    assert tokens(Image(TINY), media_sizing={"max_pixels": 28**2 * 100}) == 4
    for said in ({"max_frames": 8}, {"fps": 2.0}):
        with pytest.raises(ModelError, match="no videos"):
            tokens(Image(TINY), media_sizing=said)
    with pytest.raises(ModelError, match="max_pixels"):
        tokens(Image(TINY), media_sizing={"max_pixels": 100})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 7]}}, "mrope_section"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6], "mrope_interleaved": True}}, "interleaved"),
        ({"image_token_id": 7}, "image_token_id"),
        ({"hidden_size": 128}, "hidden_size"),
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act"),
        ({"vision_config": {"embed_dim": 96, "num_heads": 3, "hidden_size": 64, "depth": 2}}, "embed_dim"),
        ({"vision_config": {"patch_size": 16}}, "patch_size"),
        ({"architectures": ["Qwen2VLForConditionalGeneration"]}, "Qwen2VLForConditionalGeneration"),
    ],
)
def test_others_are_refused(folder: Path, tmp_path: Path, entries: Any, said: str) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    edit(copied, **entries)
    with pytest.raises(ModelError, match=said) as raised, Reranker(copied, device="cpu"):
        pass
    assert "\n" not in str(raised.value)


def test_what_it_has_no_use_for_is_refused(folder: Path) -> None:
    assert "no use" in refusal(folder, chat_template="{{ messages[0].content }}")
    assert "no use" in refusal(folder, default_instruction="Find it.")
    assert "choose jina-reranker-m0" in refusal(folder, recipe="qwen3-vl-reranker")
    assert "by no labels" in refusal(folder, label="LABEL_1")


def test_over_http(folder: Path, reference: Reference) -> None:
    """By Jina's own API, whose documents are texts and images."""
    buffer = io.BytesIO()
    SQUARE.save(buffer, "PNG")
    image = {"image": base64.b64encode(buffer.getvalue()).decode()}
    with (
        Reranker(folder, device="cpu", dtype="float32") as reranker,
        running(reranker, Settings(names=("m",))) as url,
    ):

        def post(*documents: object) -> requests.Response:
            body = {"model": "jina-reranker-m0", "query": QUERIES[1], "documents": documents}
            return requests.post(f"{url}/jina/v1/rerank", json=body, timeout=60)

        answered, refused = post(image, {"text": DOCUMENTS[1]}), post("a text", image | {"text": "a text"})
    found = {one["index"]: one["relevance_score"] for one in answered.json()["results"]}
    expected = [reference.score(QUERIES[1], SQUARE), reference.score(QUERIES[1], DOCUMENTS[1])]
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-5)
    assert refused.status_code in (400, 422)
    assert "one image" in refused.text

"""llama-nemotron-rerank-vl against transformers' SigLIP, and its Llama with a mask that hides nothing."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest
import requests
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, SiglipVisionConfig, SiglipVisionModel

from rerankd import InvalidRequest, ModelError, Reranker
from rerankd.core import Content, Image, RerankRequest, Text, Video
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.media.tiles import Tiles
from rerankd.options import LoadOptions
from rerankd.server.settings import Settings
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.decoder_checkpoints import BEGIN
from tests.encoder_checkpoints import edit
from tests.models.test_recipes import refusal
from tests.pairs import SQUARE, TALL, WIDE, picture
from tests.server.fakes import running
from tests.texts import DOCUMENTS, QUERIES
from tests.visual_checkpoints import nemotron_vl

Document = tuple[str, PIL.Image.Image | None]
MIDDLE = picture(900, 880, 21)
TEXTS: list[Document] = [(text, None) for text in DOCUMENTS[:9]]
SEEN: list[Document] = [("", SQUARE), ("", TALL), ("A page.", MIDDLE), (QUERIES[0], WIDE), ("x " * 30, SQUARE)]
ASKED = [*QUERIES[1:4], ""]
READ = [[*TEXTS, *SEEN], *[[*TEXTS, SEEN[0], SEEN[-1]]] * 3]
"""The documents of each query."""
PAIRS = [(query, document) for query, documents in zip(ASKED, READ, strict=True) for document in documents]
COUNTS = {id(SQUARE): 1, id(TALL): 7, id(MIDDLE): 5, id(WIDE): 4}
"""Tiles, with the one that shows all of a picture."""


class Reference:
    """nvidia's processor and model, one pair at a time."""

    def __init__(self, folder: Path, side: int = 512, most: int = 6, whole: bool = True, length: int = 10240) -> None:
        """side, most: of tiles; whole: whether all of a picture is one more; length: tokens of a prompt at most"""
        self.folder, self.side, self.most, self.whole, self.length = folder, side, most, whole, length
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._features: dict[int, Tensor] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return found

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in load_file(self.folder / "model.safetensors").items()}

    def below(self, scope: str) -> dict[str, Tensor]:
        return {name[len(scope) :]: tensor for name, tensor in self.weights.items() if name.startswith(scope)}

    @cached_property
    def llama(self) -> Any:
        config = self.config["llm_config"]
        model = LlamaModel(LlamaConfig(**config, attn_implementation="eager")).eval()
        model.load_state_dict(self.below("model.language_model."))
        return model

    @cached_property
    def siglip(self) -> Any:
        config = self.config["vision_config"]
        model = SiglipVisionModel(SiglipVisionConfig(**config)).eval()
        own = self.below("model.vision_model.vision_model.")
        deeper = any(name.startswith("vision_model.") for name in model.state_dict())
        model.load_state_dict({f"vision_model.{name}" if deeper else name: tensor for name, tensor in own.items()})
        return model

    def tiles(self, image: PIL.Image.Image) -> Tensor:
        """Up to 6 tiles of 512 x 512 and all of the picture: float32 [tiles, 3, 512, 512]."""
        width, height = image.size
        side, most = self.side, self.most
        shapes = {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
        best, chosen = float("-inf"), (1, 1)
        for shape in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            ratio = (shape[0] / shape[1]) / (width / height)
            fit = min(shape[0] * shape[1] * side * side / (width * height), 0.6) * min(ratio, 1 / ratio)
            if fit > best + 1e-12:
                best, chosen = fit, shape
        resized = image.resize((side * chosen[0], side * chosen[1]))
        places = [(side * i, side * j) for j in range(chosen[1]) for i in range(chosen[0])]
        shown = [resized.crop((left, top, left + side, top + side)) for left, top in places]
        shown += [image.resize((side, side))] if len(shown) > 1 and self.whole else []
        stacked = torch.stack([torch.from_numpy(numpy.array(tile)).permute(2, 0, 1).float().div(255) for tile in shown])
        return stacked.sub(0.5).div(0.5).bfloat16().float()

    @torch.inference_mode()
    def features(self, image: PIL.Image.Image) -> Tensor:
        """[tiles * 256, hidden]: of each 2 x 2 patches the states one behind another, projected."""
        if id(image) not in self._features:
            states, half = self.siglip(self.tiles(image)).last_hidden_state, self.side // 32
            grid = states.view(len(states), half, 2, half, 2, -1).permute(0, 1, 3, 2, 4, 5)
            grid = grid.reshape(len(states) * half * half, -1)
            own = self.below("model.mlp1.")
            normed = functional.layer_norm(grid, (grid.shape[1],), own["0.weight"], own["0.bias"])
            inner = functional.gelu(functional.linear(normed, own["1.weight"], own["1.bias"]))
            self._features[id(image)] = functional.linear(inner, own["3.weight"], own["3.bias"])
        return self._features[id(image)]

    def ids(self, query: str, document: Document) -> list[int]:
        text, image = document
        prompt = f"question:{query} \n \n passage:{text}"
        if image is not None:
            tokens = (self.side // 32) ** 2 * len(self.tiles(image))
            prompt = f"<img>{'<IMG_CONTEXT>' * tokens}</img> {prompt}"
        ids: list[int] = self.tokenizer(prompt, truncation=True, max_length=self.length)["input_ids"]
        return ids

    @torch.inference_mode()
    def score(
        self, query: str, document: Document, causal: bool = False, pool: str = "avg", heat: float = 1.0
    ) -> float:
        ids = torch.tensor(self.ids(query, document))
        x = self.llama.embed_tokens(ids).clone()
        if document[1] is not None:
            x[ids == self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")] = self.features(document[1])
        mask = None if causal else torch.zeros(1, 1, len(ids), len(ids))
        states = self.llama(inputs_embeds=x[None], attention_mask=mask).last_hidden_state[0]
        pooled = states.mean(0) if pool == "avg" else states[-1]
        return float((self.weights["score.weight"] @ pooled / heat).sigmoid())


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    """Its weights are bfloat16's, so that one reference in float32 serves both dtypes."""
    return make_checkpoint(nemotron_vl, storage=Storage(dtype="bfloat16"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[float]:
    return [reference.score(*pair) for pair in PAIRS]


def content(document: Document) -> Content:
    """The image behind the text, from where it is put first."""
    text, image = document
    return (*([Text(text)] if text else []), *([Image(image)] if image is not None else []))


def asked() -> list[RerankRequest]:
    return [RerankRequest((Text(query),), tuple(map(content, read))) for query, read in zip(ASKED, READ, strict=True)]


def found(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        results = [reranker.collect(reranker.submit(request)) for request in asked()]
    return [document.score for result in results for document in result.in_request_order()]


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_scores_are_the_authors(folder: Path, expected: list[float], dtype: str, near: float) -> None:
    assert len(PAIRS) > 40
    assert max(expected) - min(expected) >= 0.2
    assert found(folder, dtype) == pytest.approx(expected, abs=near)


def test_other_rules(make_checkpoint: MakeCheckpoint, reference: Reference, expected: list[float]) -> None:
    """A causal Llama, another pooling and another temperature give other scores; the latter two may be asked for."""
    few = [0, 4, 8, 9, 13]
    rules: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"causal": True}, None), ({"pool": "last"}, {"pooling": "last"}), ({"heat": 0.5}, {"temperature": 0.5}),
    ]  # fmt: skip
    for rule, entries in rules:
        other = [reference.score(*PAIRS[i], **rule) for i in few]
        assert max(abs(score - expected[i]) for i, score in zip(few, other, strict=True)) > 0.02, rule
        if entries is not None:
            folder = make_checkpoint(nemotron_vl, storage=Storage(dtype="bfloat16"), **entries)
            with Reranker(folder, device="cpu", dtype="float32") as reranker:
                result = reranker.rerank(ASKED[0], [content(PAIRS[i][1]) for i in few])
            assert [one.score for one in result.in_request_order()] == pytest.approx(other, abs=1e-5)


def test_prompts_and_pixels_are_the_authors(folder: Path, reference: Reference) -> None:
    planned = plan(LoadOptions(str(folder), device="cpu"))
    loader = planned.media_loader()
    assert loader is not None
    with loader:
        request = asked()[0]
        group = planned.prompts.build(request, loader.load_blocking(request).visuals)
    assert not group.prefix.token_ids
    for suffix, document in zip(group.suffixes, READ[0], strict=True):
        assert suffix.token_ids == reference.ids(ASKED[0], document)
        assert len(suffix.visuals) == (document[1] is not None)
        for visual in suffix.visuals:
            assert document[1] is not None
            tiles = reference.tiles(document[1])
            assert visual.grid == (len(tiles), 32, 32) == (COUNTS[id(document[1])], 32, 32)
            # Patches of a token lie side by side; those of the reference row by row.
            patches = visual.pixel_values().view(len(tiles), 16, 16, 2, 2, 3, 16, 16)
            whole = patches.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(tiles), 3, 512, 512)
            assert torch.equal(whole, tiles)


def test_an_inspection(folder: Path) -> None:
    inspection = inspect(plan(LoadOptions(str(folder), device="cpu")))
    assert (inspection.recipe, inspection.head) == ("nemotron-rerank-vl", "classifier of 1 label")
    assert inspection.prompts == (f"{BEGIN}question:what is panda? \n \n passage:The giant panda is a bear.",)
    assert (inspection.max_tokens, inspection.positions) == (10240, 16384)
    assert inspection.not_understood == ("config.json: `auto_map` names code of the folder's own, which is not run",)


def test_contents_that_the_authors_do_not_score_are_refused(folder: Path) -> None:
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        with pytest.raises(InvalidRequest, match=r"query.*images only in documents"):
            reranker.rerank([Image(SQUARE)], ["a text"])
        for parts, said in (
            ([Image(SQUARE), Text("and"), Image(WIDE)], "holds 2 images"),
            ([Video([SQUARE, SQUARE])], "no videos"),
            ([Image(SQUARE, max_pixels=10_000)], "leave min_pixels and max_pixels out"),
        ):
            with pytest.raises(InvalidRequest, match=rf"documents\[1\].*{said}"):
                reranker.rerank("a text", ["a text", parts])
            result = reranker.rerank("a text", ["a text", parts], on_error="skip")
            assert list(result.failed) == [1]
    with pytest.raises(ModelError, match="min_pixels and max_pixels"):
        plan(LoadOptions(str(folder), device="cpu", media_sizing={"min_pixels": 5000})).media_loader()


def test_a_user_says_how_many_tiles(folder: Path) -> None:
    with pytest.raises(ModelError, match="tiles of 512 pixels along a side"):
        plan(LoadOptions(str(folder), device="cpu", media_sizing={"tiles": Tiles(256, 2)})).media_loader()
    loader = plan(LoadOptions(str(folder), device="cpu", media_sizing={"tiles": Tiles(512, 2)})).media_loader()
    assert loader is not None
    with loader:
        (shown,) = loader.load_blocking(RerankRequest((Text("q"),), ((Image(TALL),),))).documents[0]
    assert shown.grid == (3, 32, 32)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"pooling": "cls"}, "pooling"),
        ({"temperature": 0}, "temperature"),
        ({"prompt_template": "v2"}, "prompt_template"),
        ({"select_layer": -2}, "select_layer"),
        ({"downsample_ratio": 0.3}, "downsample_ratio"),
        ({"force_image_size": 448}, "force_image_size"),
        ({"pre_feature_reduction": True}, "pre_feature_reduction"),
        ({"img_context_token_id": 128258}, "img_context_token_id"),
        ({"vision_config": {"model_type": "radio"}}, "model_type"),
        ({"llm_config": {"architectures": ["Qwen3Model"]}}, "Qwen3Model"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "3 labels"),
        ({"architectures": ["LlamaNemotronVLModel"]}, "LlamaNemotronVLModel"),
    ],
)
def test_others_are_refused(folder: Path, tmp_path: Path, entries: Any, said: str) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    edit(copied, **{name: _over(folder, name, value) for name, value in entries.items()})
    with pytest.raises(ModelError, match=said) as raised, Reranker(copied, device="cpu"):
        pass
    assert "\n" not in str(raised.value)


def _over(folder: Path, name: str, value: Any) -> Any:
    """A section's entries with others over them; anything else as it is."""
    below = json.loads((folder / "config.json").read_text()).get(name)
    return {**below, **value} if name.endswith("_config") and isinstance(below, dict) else value


def test_what_it_has_no_use_for_is_refused(folder: Path) -> None:
    assert "no use" in refusal(folder, chat_template="{{ messages[0].content }}")
    assert "no use" in refusal(folder, default_instruction="Find it.")
    assert "choose nemotron-rerank-vl" in refusal(folder, recipe="nemotron-rerank")


def test_over_http(folder: Path, reference: Reference) -> None:
    """By NVIDIA's own API, whose passages have a text, an image, or both."""
    buffer = io.BytesIO()
    SQUARE.save(buffer, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    body = {
        "model": "m",
        "query": {"text": QUERIES[1]},
        "passages": [{"text": "A page."}, {"text": "x", "image": image}],
    }
    with (
        Reranker(folder, device="cpu", dtype="float32") as reranker,
        running(reranker, Settings(names=("m",))) as url,
    ):
        answered = requests.post(f"{url}/v1/ranking", json=body, timeout=60)
    found = {one["index"]: 1 / (1 + math.exp(-one["logit"])) for one in answered.json()["rankings"]}
    expected = [reference.score(QUERIES[1], ("A page.", None)), reference.score(QUERIES[1], ("x", SQUARE))]
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-5)

"""Probabilities of labels against transformers' logits, through SGLang's `/v1/score` on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import transformers

from rerankd import InvalidRequest, Reranker
from rerankd.core import Labels, RerankRequest, Tokens, text_content
from rerankd.server.settings import Settings
from tests import checkpoints, texts
from tests.conftest import MakeCheckpoint
from tests.labels import label_request
from tests.server.fakes import running

QUERY = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n<Query>: what is panda?\n<Document>: "  # no template's own
)
END = "<|im_end|>\n<|im_start|>assistant\n"
ITEMS = [document + END for document in ("hi", "The giant panda is a bear.", "熊猫是熊。", texts.words(120, 1), "")]
LABELS = [9693, 2152, 0, 151668, 9693]
"""Yes, no, the first token and the last, and one twice."""

CHECKPOINTS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "tied": (checkpoints.qwen3, {}),
    "untied": (checkpoints.qwen3, {"tied": False}),
    "vl": (checkpoints.qwen3_vl, {}),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Path:
    maker, options = CHECKPOINTS[request.param]
    return make_checkpoint(maker, **options)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, device="cpu", dtype="float32", max_batch_tokens=200) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(reranker: Reranker) -> Iterator[str]:
    with running(reranker, Settings(names=("served",), dialect="sglang")) as base:
        yield base


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[[Sequence[str]], torch.Tensor]:
    """transformers' logits of the token after each prompt: float32 [prompts, vocabulary]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = transformers.AutoModelForCausalLM
    if "VL" in (folder / "config.json").read_text():
        kind = transformers.Qwen3VLForConditionalGeneration
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(prompts: Sequence[str]) -> torch.Tensor:
        every = [model(**tokenizer(one, return_tensors="pt"), logits_to_keep=1).logits[0, -1] for one in prompts]
        return torch.stack(every)

    return logits


def post(url: str, **body: Any) -> requests.Response:
    return requests.post(f"{url}/v1/score", json=body, timeout=60)


def scores(url: str, **body: Any) -> list[list[float]]:
    response = post(url, **body)
    assert response.status_code == 200, response.text
    found: list[list[float]] = response.json()["scores"]
    return found


def largest_difference(found: Sequence[Sequence[float]], expected: torch.Tensor) -> float:
    return float((torch.tensor(found) - expected).abs().max())


@pytest.mark.parametrize("item_first", [False, True])
def test_scores_are_transformers(
    url: str, reference: Callable[[Sequence[str]], torch.Tensor], item_first: bool
) -> None:
    body = {"query": QUERY, "items": ITEMS, "label_token_ids": LABELS, "item_first": item_first}
    logits = reference([item + QUERY if item_first else QUERY + item for item in ITEMS])
    among_labels = logits[:, LABELS].softmax(-1)
    among_all = logits.softmax(-1)[:, LABELS]
    assert (among_labels.amax(0) - among_labels.amin(0)).max() > 0.05
    assert largest_difference(scores(url, **body, apply_softmax=True), among_labels) < 1e-5
    found = scores(url, **body)
    assert largest_difference(found, among_all) < 1e-5
    # Probabilities this small say little in absolute terms.
    assert (torch.tensor(found).log() - among_all.log()).abs().max() < 1e-4


def test_answer_has_sglangs_shape(url: str, reranker: Reranker) -> None:
    response = post(url, query="a b", items=["c", "d e"], label_token_ids=[5], model="served")
    answer = response.json()
    assert set(answer) == {"scores", "model", "usage", "object"}
    assert (answer["model"], answer["object"]) == ("served", "scoring")
    tokens = sum(len(reranker.tokenize(text)) for text in ("a bc", "a bd e"))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    assert "X-Rerankd-Ignored" not in response.headers
    metrics = requests.get(f"{url}/metrics", timeout=30).text
    assert 'rerankd_requests_total{dialect="sglang",route="/v1/score",status="200"}' in metrics
    documents = next(line for line in metrics.splitlines() if line.startswith("rerankd_documents_total"))
    assert float(documents.split()[1]) >= 2


def test_token_ids_are_prompts_too(url: str, reranker: Reranker) -> None:
    query, items = QUERY + " ", [[token.id for token in reranker.tokenize(item)] for item in ITEMS[:3]]
    ids = [token.id for token in reranker.tokenize(query)]
    assert len(ids) < len(query) / 3
    whole = [[*ids, *item] for item in items]
    expected = scores(url, items=whole, label_token_ids=LABELS)
    assert scores(url, query=ids, items=items, label_token_ids=LABELS) == pytest_approx(expected)
    assert scores(url, query=[], items=whole, label_token_ids=LABELS) == pytest_approx(expected)
    turned = scores(url, query=ids, items=items, label_token_ids=LABELS, item_first=True)
    assert turned == pytest_approx(scores(url, items=[[*item, *ids] for item in items], label_token_ids=LABELS))
    assert largest_difference(turned, torch.tensor(expected)) > 1e-7
    texts_ = scores(url, query="", items=[QUERY + ITEMS[0]], label_token_ids=LABELS)
    assert scores(url, items=QUERY + ITEMS[0], label_token_ids=LABELS) == pytest_approx(texts_)


def pytest_approx(expected: list[list[float]]) -> list[Any]:
    return [pytest.approx(one, abs=1e-6, rel=1e-4) for one in expected]


def test_no_items_are_no_error(url: str) -> None:
    assert scores(url, query="q", items=[], label_token_ids=[1]) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"label_token_ids": None}, "label_token_ids"),
        ({"label_token_ids": []}, "label_token_ids"),
        ({"label_token_ids": [1, 10**30]}, "label_token_ids"),
        ({"label_token_ids": [-1]}, "label_token_ids"),
        ({"label_token_ids": ["yes"]}, "label_token_ids[0]"),
        ({"items": None}, "items"),
        ({"items": {}}, "items"),
        ({"items": [{}]}, "items[0]"),
        ({"items": ["b", [1]]}, "items[1]"),
        ({"query": [1], "items": ["b"]}, "items[0]"),
        ({"query": None, "items": [[]]}, "items[0]"),
        ({"query": "", "items": [""]}, "items[0]"),
        ({"query": [1], "items": [[2], [151_936_000]]}, "items[1]"),
        ({"query": [1], "items": [[2], [-1]]}, "items[1]"),
        ({"query": {}}, "query"),
        ({"apply_softmax": "often"}, "apply_softmax"),
    ],
)
def test_a_bad_field_is_named(url: str, change: dict[str, Any], param: str) -> None:
    body = {"query": "a", "items": ["b"], "label_token_ids": [1, 2], **change}
    response = post(url, **{name: value for name, value in body.items() if value is not None or name == "query"})
    assert (response.status_code, response.json()["param"]) == (400, param), response.text


def test_what_does_not_fit_is_refused(qwen3_checkpoint: Path, qwen3_vl_checkpoint: Path) -> None:
    labels = Labels((1, 2))

    def refusal(reranker: Reranker, *prompts: str | tuple[int, ...]) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as caught:
            asyncio.run(reranker.answer(label_request(prompts, labels)))
        return caught.value

    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32", max_model_len=100) as reranker:
        error = refusal(reranker, "short", "long " * 130)
        assert (error.field, "100 are allowed" in error.problem) == ("documents[1]", True)
        asyncio.run(reranker.answer(label_request(("<|image_pad|>",), labels)))
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as reranker:
        assert "image" in refusal(reranker, "a", "see <|vision_start|><|image_pad|><|vision_end|>").problem


def test_labels_and_documents_share_batches(reranker: Reranker, url: str) -> None:
    """Many at once, in batches of a few prompts: each gets what it gets alone."""
    pairs = [("what is panda?", document) for document in texts.DOCUMENTS[:10]]
    relevance = reranker.score(pairs)
    body = {"query": QUERY, "items": ITEMS}
    kinds = [{"label_token_ids": LABELS}, {"label_token_ids": [7], "apply_softmax": False}]
    kinds += [{"label_token_ids": LABELS[:2], "apply_softmax": True}]
    alone = [scores(url, **body, **kind) for kind in kinds]
    with ThreadPoolExecutor(12) as threads:
        scored = [threads.submit(reranker.score, pairs) for _ in range(4)]
        labelled = [threads.submit(scores, url, **body, **kind) for kind in kinds * 3]
        assert all(one.result() == pytest.approx(relevance, abs=1e-5) for one in scored)
        for place, one in enumerate(labelled):
            assert one.result() == pytest_approx(alone[place % len(kinds)])


def test_token_ids_are_for_labels_alone(
    qwen3_checkpoint: Path, qwen3_vl_checkpoint: Path, bert_checkpoint: Path
) -> None:
    for folder in (qwen3_checkpoint, qwen3_vl_checkpoint, bert_checkpoint):
        with Reranker(folder, device="cpu", dtype="float32") as reranker:
            asked = RerankRequest(text_content("q"), (text_content("a"), (Tokens((1, 2)),)))
            with pytest.raises(InvalidRequest, match="documents: are token ids"):
                asyncio.run(reranker.answer(asked))


def test_labels_keep_the_order_and_hold_one_piece(reranker: Reranker) -> None:
    labels = Labels((9693, 2152), among_themselves=True)
    result = asyncio.run(reranker.answer(label_request(ITEMS[:3], labels, QUERY)))
    assert [document.index for document in result.documents] == [0, 1, 2]
    assert [document.score for document in result.documents] == [document.labels[0] for document in result.documents]
    assert sum(result.documents[0].labels) == pytest.approx(1)
    assert result.scored == 3
    with pytest.raises(InvalidRequest, match=r"documents\[0\]: must be one text, or token ids"):
        asyncio.run(reranker.answer(RerankRequest((), ((),), labels=labels)))


def test_a_head_of_its_own_is_read_when_it_is_asked_for(make_checkpoint: MakeCheckpoint) -> None:
    with Reranker(make_checkpoint(checkpoints.qwen3, tied=False), device="cpu", dtype="float32") as reranker:
        head: Any = getattr(reranker._engine.model.head, "vocabulary")  # noqa: B009 - a head of another kind has none
        reranker.rerank("q", ["a", "b"])
        asyncio.run(reranker.answer(label_request(("a",), Labels((1, 2), among_themselves=True))))
        assert "_matrix" not in vars(head)
        asyncio.run(reranker.answer(label_request(("a",), Labels((1, 2)))))
        assert vars(head)["_matrix"].shape == (head.size, 64)


@pytest.mark.parametrize("fixture", ["qwen3_seq_cls_checkpoint", "xlmr_checkpoint", "minilm_path"])
def test_a_model_without_a_head_is_named(fixture: str, request: pytest.FixtureRequest) -> None:
    with (
        Reranker(request.getfixturevalue(fixture), device="cpu", dtype="float32") as reranker,
        running(reranker, Settings(names=("served",))) as url,
    ):
        response = post(url, query="a", items=["b"], label_token_ids=[1, 2], apply_softmax=True)
        assert (response.status_code, response.json()["param"]) == (400, "model")
        assert "converted to a classifier" in response.json()["message"]


def test_bfloat16(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(checkpoints.qwen3, storage=checkpoints.Storage(dtype="bfloat16"))
    prompts = tuple(QUERY + item for item in ITEMS)
    found = []
    for dtype in ("float32", "bfloat16"):
        with Reranker(folder, device="cpu", dtype=dtype) as reranker:
            result = asyncio.run(reranker.answer(label_request(prompts, Labels((9693, 2152), among_themselves=True))))
            found.append(torch.tensor([document.labels for document in result.documents]))
    assert (found[0] - found[1]).abs().max() < 0.01

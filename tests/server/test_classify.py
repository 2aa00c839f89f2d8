"""vLLM's `/classify` and TEI's `/predict`: the labels of transformers' pipeline, over a real socket."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from transformers import pipeline

from rerankd import InvalidRequest, Reranker
from rerankd.core import Logits, RerankRequest, text_content
from rerankd.loading import plan
from rerankd.options import LoadOptions
from rerankd.server.settings import Settings
from tests.conftest import MakeCheckpoint
from tests.embedding_checkpoints import embedder
from tests.encoder_checkpoints import edit
from tests.models.test_label import NLI, nli
from tests.server.fakes import running
from tests.test_scores import PAIRS

PAIR = ("what is panda?", "The giant panda is a bear.")
TEXTS = [text for pair in PAIRS[:8] for text in pair]
Serve = Callable[..., str]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """The URL of a server of a folder, which is started once."""
    urls: dict[Path, str] = {}
    with ExitStack() as stack:

        def started(folder: Path, **options: Any) -> str:
            if folder not in urls:
                reranker = stack.enter_context(Reranker(folder, device="cpu", dtype="float32", **options))
                urls[folder] = stack.enter_context(running(reranker, Settings(names=("m",))))
            return urls[folder]

        yield started


@pytest.fixture(scope="module")
def three(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(nli)


def post(url: str, path: str, **body: Any) -> requests.Response:
    return requests.post(url + path, json=body, timeout=60)


def expected(folder: Path, texts: list[Any], **options: Any) -> list[dict[str, float]]:
    """The score of each label; texts: or pairs."""
    classify: Any = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    rows = [{"text": one[0], "text_pair": one[1]} if isinstance(one, tuple) else one for one in texts]
    return [{one["label"]: one["score"] for one in classify([row], **options)[0]} for row in rows]


def same(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> bool:
    return len(found) == len(wanted) and all(
        ours == pytest.approx(theirs, abs=1e-5) for ours, theirs in zip(found, wanted, strict=True)
    )


def named(predictions: list[dict[str, Any]]) -> dict[str, float]:
    scores = [one["score"] for one in predictions]
    assert scores == sorted(scores, reverse=True)
    return {one["label"]: one["score"] for one in predictions}


def test_labels_of_texts(serve: Serve, three: Path) -> None:
    url, wanted = serve(three, label="entailment"), expected(three, TEXTS)
    shares = [one["entailment"] for one in wanted]
    assert max(shares) - min(shares) > 0.05
    answer = post(url, "/classify", input=TEXTS, model="m").json()
    assert same([dict(zip(NLI.values(), one["probs"], strict=True)) for one in answer["data"]], wanted)
    assert [one["label"] for one in answer["data"]] == [max(one, key=one.__getitem__) for one in wanted]
    assert {one["num_classes"] for one in answer["data"]} == {3}
    assert answer["usage"]["prompt_tokens"] > 3 * len(TEXTS)
    first = post(url, "/invocations", input=TEXTS[0]).json()["data"]
    assert same([dict(zip(NLI.values(), one["probs"], strict=True)) for one in first], wanted[:1])
    assert same([named(one) for one in post(url, "/predict", inputs=[[text] for text in TEXTS]).json()], wanted)
    logits = expected(three, TEXTS[:2], function_to_apply="none")
    assert same([named(post(url, "/predict", inputs=TEXTS[0], raw_scores=True).json())], logits[:1])
    for name in ("use_activation", "activation", "softmax"):
        raw = post(url, "/classify", input=TEXTS[:2], **{name: False})
        assert same([dict(zip(NLI.values(), one["probs"], strict=True)) for one in raw.json()["data"]], logits)
        assert "X-Rerankd-Ignored" not in raw.headers


def test_labels_of_pairs_and_of_texts_in_one_batch(serve: Serve, three: Path) -> None:
    url = serve(three, label="entailment")
    mixed = [PAIR, "hi", PAIRS[1], (PAIR[0], "pandas eat bamboo"), "hi there", ("", "hi")]
    inputs = [[one] if isinstance(one, str) else list(one) for one in mixed]
    wanted = expected(three, mixed)
    assert same([named(one) for one in post(url, "/predict", inputs=inputs).json()], wanted)
    assert same([named(post(url, "/predict", inputs=list(PAIR)).json())], wanted[:1])
    info = requests.get(f"{url}/info", timeout=30).json()
    assert info["model_type"]["reranker"]["id2label"] == NLI


def test_labels_and_scores_of_one_batch(three: Path) -> None:
    query, document = map(text_content, PAIR)
    together = (
        RerankRequest(query, (document,), outputs=Logits()),
        RerankRequest(query, (document,) * 2),
        RerankRequest((), (document,), outputs=Logits()),
    )
    with Reranker(three, device="cpu", dtype="float32", label="entailment") as reranker:
        pair, scored, alone = map(reranker.collect, reranker.submit_together(list(map(reranker.prepare, together))))
    logits = expected(three, [PAIR, PAIR[1]], function_to_apply="none")
    found = [dict(zip(NLI.values(), one.documents[0].values, strict=True)) for one in (pair, alone)]
    assert same(found, logits)
    score = expected(three, [PAIR])[0]["entailment"]
    assert [one.score for one in scored] == pytest.approx([score] * 2, abs=1e-5)


def test_labels_that_do_not_exclude_one_another(serve: Serve, three: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(three, tmp_path / "model"))
    edit(folder, problem_type="multi_label_classification")
    wanted = expected(folder, TEXTS[:3])
    assert any(sum(one.values()) > 1.1 or sum(one.values()) < 0.9 for one in wanted)
    data = post(serve(folder, label="entailment"), "/classify", input=TEXTS[:3]).json()["data"]
    assert same([dict(zip(NLI.values(), one["probs"], strict=True)) for one in data], wanted)


def test_one_label(serve: Serve, bert_checkpoint: Path) -> None:
    url, wanted = serve(bert_checkpoint), expected(bert_checkpoint, [PAIR, *TEXTS[:3]], function_to_apply="sigmoid")
    inputs = [list(PAIR), *([text] for text in TEXTS[:3])]
    assert same([named(one) for one in post(url, "/predict", inputs=inputs).json()], wanted)


def test_a_long_text_is_cut(serve: Serve, three: Path) -> None:
    url, long = serve(three, label="entailment"), "a panda eats bamboo " * 300
    response = post(url, "/predict", inputs=[["hi"], [long], [PAIR[0], long]])
    assert response.headers["X-Rerankd-Truncated"] == "documents 1-2"
    wanted = expected(three, [long, (PAIR[0], long)], truncation=True)
    assert same([named(one) for one in response.json()[1:]], wanted)
    refused = post(url, "/predict", inputs=[["hi"], [long]], truncate=False)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert "inputs[1]" in refused.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["a", "b", "c"], "a pair of texts at most"),
        ([["a"], "b"], "inputs"),
        ([["a", "b", "c"]], "inputs[0]"),
        ([[]], "inputs[0]"),
        ([1], "inputs[0]"),
    ],
)
def test_what_predict_refuses(serve: Serve, three: Path, inputs: Any, names: str) -> None:
    response = post(serve(three, label="entailment"), "/predict", inputs=inputs)
    assert (response.status_code, response.json()["error_type"]) == (422, "Tokenizer")
    assert names in response.json()["error"]


def test_a_model_without_labels_says_so(
    serve: Serve, make_checkpoint: MakeCheckpoint, qwen3_seq_cls_checkpoint: Path
) -> None:
    url = serve(make_checkpoint(embedder))
    refused = post(url, "/classify", input="a")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    refused = post(url, "/predict", inputs=[["a"], ["b", "c"]])
    assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
    # A decoder's classifier was trained on its template, not on texts as they stand.
    planned = plan(LoadOptions(str(qwen3_seq_cls_checkpoint), device="cpu"))
    with pytest.raises(InvalidRequest, match="model: is no classifier of texts"):
        planned.prompts.build(RerankRequest((), (text_content("a"),), outputs=Logits()))

"""jina-reranker-v3, which reads many documents at once, against its authors' rule over transformers' Qwen3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from rerankd import Chunking, InvalidRequest, ModelError, Reranker, RerankResult, Truncation
from rerankd.core import text_content
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from rerankd.rank.local import LocalScorer
from rerankd.rank.queries import Query
from rerankd.rank.scoring import Block, RankSettings
from rerankd.server.settings import Settings
from tests import listwise
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import edit
from tests.server.fakes import running
from tests.texts import DOCUMENTS, QUERIES, words

QUERY = QUERIES[0]
TEXTS = [*DOCUMENTS, *(words(12, seed) for seed in range(100, 140))][:40]
SHORT = [words(1 + i % 3, 1000 + i) for i in range(130)]


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(listwise.jina_v3)


@pytest.fixture(scope="module")
def reference(folder: Path) -> listwise.Jina:
    return listwise.Jina(folder)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, device="cpu", dtype="float32") as loaded:
        yield loaded


def scores(result: RerankResult) -> list[float]:
    return [document.score for document in result.in_request_order()]


def test_scores_are_the_authors(reranker: Reranker, reference: listwise.Jina) -> None:
    expected = reference.scores(QUERY, TEXTS)
    assert len(expected) == 40
    assert max(expected) - min(expected) >= 0.2
    result = reranker.rerank(QUERY, TEXTS)
    assert scores(result) == pytest.approx(expected, abs=1e-5)
    assert (result.windows, result.truncated, result.ignored) == (1, (), ())
    # One prompt, whose tokens are counted once.
    assert result.prompt_tokens == result.computed_tokens == result.documents[0].prompt_tokens
    instructed = reference.scores(QUERY, TEXTS, "Prefer what is new.")
    assert scores(reranker.rerank(QUERY, TEXTS, "Prefer what is new.")) == pytest.approx(instructed, abs=1e-5)
    assert instructed != pytest.approx(expected, abs=1e-4)
    # It is listwise: other company, other scores.
    assert scores(reranker.rerank(QUERY, TEXTS[:2])) == pytest.approx(reference.scores(QUERY, TEXTS[:2]), abs=1e-5)
    assert scores(reranker.rerank(QUERY, TEXTS[:2])) != pytest.approx(expected[:2], abs=1e-4)


def test_bfloat16(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(listwise.jina_v3, storage=Storage(dtype="bfloat16"))
    expected = listwise.Jina(folder).scores(QUERY, TEXTS)
    assert max(expected) - min(expected) >= 0.2
    with Reranker(folder, device="cpu", dtype="bfloat16") as reranker:
        assert scores(reranker.rerank(QUERY, TEXTS)) == pytest.approx(expected, abs=0.01)


def test_more_documents_than_a_prompt_holds(reranker: Reranker, reference: listwise.Jina) -> None:
    expected = reference.scores(QUERY, SHORT)
    assert reference.blocks == [125, 5]
    result = reranker.rerank(QUERY, SHORT)
    assert scores(result) == pytest.approx(expected, abs=1e-5)
    assert result.windows == 2
    assert result.prompt_tokens == sum({d.prompt_tokens for d in result.documents})


def test_more_tokens_than_a_prompt_holds(folder: Path, reference: listwise.Jina) -> None:
    texts = [words(500 if i % 12 == 0 else 100, 200 + i) for i in range(28)]
    query = words(40, 9)
    expected = reference.scores(query, texts, max_query_length=20, max_doc_length=500, max_length=2000)
    assert reference.blocks == [9, 8, 9, 2]
    assert max(expected) - min(expected) >= 0.2
    # The budget is smaller than any window, so that each is in a batch of its own.
    with Reranker(folder, device="cpu", dtype="float32", max_model_len=2000, max_batch_tokens=64) as reranker:
        truncation = Truncation(max_tokens_per_doc=500, max_tokens_per_query=20)
        result = reranker.rerank(query, texts, truncation=truncation)
    assert scores(result) == pytest.approx(expected, abs=1e-5)
    assert (result.windows, result.query_truncated, result.truncated) == (4, True, (0, 12, 24))


def test_a_window_that_the_template_makes_too_long(reranker: Reranker, reference: listwise.Jina) -> None:
    """The authors' rule does not count what stands around the documents."""
    truncation = Truncation(max_tokens=1000, max_tokens_per_doc=100)
    result = reranker.rerank("panda", SHORT[:100], truncation=truncation)
    assert result.windows == 2
    assert max(document.prompt_tokens for document in result.documents) <= 1000
    expected = reference.blended("panda", [SHORT[:50], SHORT[50:100]])
    assert scores(result) == pytest.approx(expected, abs=1e-5)


def test_texts_are_cut_to_the_authors_limits(reranker: Reranker, reference: listwise.Jina) -> None:
    query, texts = words(700, 1), ["panda", words(2500, 2), "a bear"]
    result = reranker.rerank(query, texts)
    assert scores(result) == pytest.approx(reference.scores(query, texts), abs=1e-5)
    assert (result.truncated, result.query_truncated) == ((1,), True)
    with pytest.raises(InvalidRequest, match=r"documents\[1\].*2048 are allowed"):
        reranker.rerank("panda", texts, truncation=Truncation(allowed=False))


def test_a_document_that_is_too_long_alone(reranker: Reranker) -> None:
    result = reranker.rerank("panda", ["a bear", words(900, 3)], truncation=Truncation(max_tokens=400))
    assert (result.windows, result.truncated) == (2, (1,))
    assert max(document.prompt_tokens for document in result.documents) <= 400
    with pytest.raises(InvalidRequest, match="allow at least"):
        reranker.rerank("panda", ["a bear"], truncation=Truncation(max_tokens=100))


def test_marks_in_texts_are_taken_away(reranker: Reranker, reference: listwise.Jina) -> None:
    marked = [f"pan{listwise.DOCUMENT_MARK}da", f"{listwise.QUERY_MARK}a bear", "bamboo"]
    expected = reference.scores("panda", ["panda", "a bear", "bamboo"])
    assert scores(reranker.rerank(f"panda{listwise.QUERY_MARK}", marked)) == pytest.approx(expected, abs=1e-5)
    nested = listwise.QUERY_MARK[:5] + listwise.DOCUMENT_MARK + listwise.QUERY_MARK[5:] + "<|im_end|>"
    assert len(reranker.rerank("panda", [nested, "bamboo"]).documents) == 2


def test_pictures_are_refused_and_chunks_are_reported(reranker: Reranker) -> None:
    with pytest.raises(InvalidRequest, match=r"documents\[1\].*reads text only"):
        reranker.rerank("panda", ["a bear", {"image": "data:image/png;base64,aGk="}])
    result = reranker.rerank("panda", ["a bear"], chunking=Chunking(max_chunks_per_doc=3))
    assert result.ignored == ("chunking.max_chunks_per_doc",)
    assert reranker.rerank("panda", []).documents == ()


def test_over_http(reranker: Reranker, reference: listwise.Jina) -> None:
    with running(reranker, Settings(names=("m",))) as url:
        body = {"query": QUERY, "documents": SHORT}
        many = requests.post(f"{url}/v1/rerank", json=body, timeout=60)
        few = requests.post(f"{url}/v1/rerank", json=body | {"documents": TEXTS}, timeout=60)
        image = {"image": "data:image/png;base64,aGk="}
        refused = requests.post(f"{url}/jina/v1/rerank", json=body | {"documents": [image]}, timeout=60)
    found = {one["index"]: one["relevance_score"] for one in many.json()["results"]}
    assert [found[i] for i in range(130)] == pytest.approx(reference.scores(QUERY, SHORT), abs=1e-5)
    assert many.headers["X-Rerankd-Windows"] == "2"
    assert "X-Rerankd-Windows" not in few.headers
    assert refused.status_code in (400, 422)
    assert "text" in refused.text


def test_files_of_queries(reranker: Reranker, reference: listwise.Jina) -> None:
    """`rerankd rank` scores a query's documents together, or not at all."""

    def query(texts: list[str]) -> Query:
        listed = [(str(i), text_content(text)) for i, text in enumerate(texts)]
        return Query("q", text_content(QUERY), listed, len(listed), "line 1", "digest")

    scorer, settings = LocalScorer(reranker), RankSettings()
    ((_, (found,)),) = scorer.score([Block(0, (query(SHORT),))], settings, lambda _: None)
    expected = reference.scores(QUERY, SHORT)
    ranked = {document.id: document.score for document in found.ranking().results}
    assert [ranked[str(i)] for i in range(130)] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InvalidRequest, match="1025, but this model scores all documents of a query together"):
        list(scorer.score([Block(0, (query(["a"] * 1025),))], settings, lambda _: None))


def test_what_inspect_says(folder: Path) -> None:
    found = inspect(plan(LoadOptions(str(folder), device="cpu"), weights=False))
    assert found.recipe == "jina-reranker-v3"
    assert found.tokens == {listwise.DOCUMENT_MARK: 151670, listwise.QUERY_MARK: 151671}
    assert (found.activation, found.max_tokens) == ("identity", 131072)
    assert found.prompts[0].endswith(
        f"{listwise.QUERY_MARK}\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_other_folders_are_refused(folder: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    newer = tmp_path / "jina-reranker-v3.5"
    shutil.copytree(folder, newer, ignore=shutil.ignore_patterns("*.safetensors"))
    edit(newer, layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=1024)
    with pytest.raises(ModelError, match=r"its name is 'jina-reranker-v3\.5'.*serve jina-reranker-v3"):
        plan(LoadOptions(str(newer), device="cpu"), weights=False)
    renamed = newer.rename(tmp_path / "renamed")
    with pytest.raises(ModelError, match=r"layers of sliding attention \(jina-reranker-v3\.5\) are not supported"):
        inspect(plan(LoadOptions(str(renamed), device="cpu"), weights=False))
    unmarked = tmp_path / "unmarked"
    shutil.copytree(folder, unmarked, ignore=shutil.ignore_patterns("*.safetensors"))
    path = unmarked / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["id"] < 151669]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"no token '<\|embed_token\|>'"):
        plan(LoadOptions(str(unmarked), device="cpu"))
    with pytest.raises(ModelError, match="chat template"):
        plan(LoadOptions(str(folder), device="cpu", chat_template="{{ query }}"))

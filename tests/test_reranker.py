"""What a `Reranker` does beside its scores: order, limits, reports, several threads."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

import rerankd
from rerankd import Chunking, InvalidRequest, Reranker
from rerankd.core import Image, RerankRequest, Text, Truncation, Video, text_content
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.test_scores import PAIRS, largest_difference
from tests.texts import DOCUMENTS, QUERIES


@pytest.fixture(scope="module")
def reranker(make_checkpoint: MakeCheckpoint) -> Iterator[Reranker]:
    with Reranker(make_checkpoint(checkpoints.qwen3), device="cpu", dtype="float32", max_batch_tokens=600) as loaded:
        yield loaded


def test_requests_at_once_get_their_own_scores(reranker: Reranker) -> None:
    random = Random(3)
    requests = [(random.choice(QUERIES), random.choices(DOCUMENTS, k=random.randint(1, 9))) for _ in range(50)]
    one_by_one = [reranker.rerank(query, documents) for query, documents in requests]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(reranker.arerank(query, documents) for query, documents in requests))

    for single, concurrent in zip(one_by_one, asyncio.run(all_at_once()), strict=True):
        assert [d.index for d in concurrent.in_request_order()] == [d.index for d in single.in_request_order()]
        scores = [d.score for d in concurrent.in_request_order()]
        assert largest_difference(scores, [d.score for d in single.in_request_order()]) <= 1e-5


def test_results_are_sorted_and_cut_to_top_n(reranker: Reranker) -> None:
    whole = reranker.rerank(QUERIES[0], DOCUMENTS)
    scores = [document.score for document in whole.documents]
    assert scores == sorted(scores, reverse=True)
    assert sorted(document.index for document in whole.documents) == list(range(len(DOCUMENTS)))
    top = reranker.rerank(QUERIES[0], DOCUMENTS, top_n=3)
    assert top.documents == whole.documents[:3]
    assert top.prompt_tokens == whole.prompt_tokens


def test_equal_logits_keep_request_order(reranker: Reranker) -> None:
    request = RerankRequest(text_content("same"), tuple(map(text_content, ["twin", "other words", "twin", "twin"])))
    submitted = reranker.submit(request)
    reranker.collect(submitted)
    # Torch's GEMMs may differ in their last bits from row to row.
    for logits in ([1.0, 5.0, 1.0, 1.0], [400.0, 79.0, 400.0, 400.0], [-0.0, -1.0, 0.0, 0.0]):
        settled: Future[list[float]] = Future()
        settled.set_result(logits)
        result = reranker.collect(dataclasses.replace(submitted, logits=settled))
        assert [document.index for document in result.documents if document.index != 1] == [0, 2, 3]


@pytest.fixture(scope="module")
def certain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder whose logits are far beyond what a sigmoid tells apart."""
    folder = checkpoints.bert(tmp_path_factory.mktemp("certain"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 150
    weights["classifier.bias"] += 230
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_equal_documents_keep_request_order(bert_checkpoint: Path) -> None:
    """Rows of a batch differ in the last digits by their places, also of equal prompts."""
    with Reranker(bert_checkpoint, device="cpu", dtype="float32") as reranker:
        for number in range(60):
            query, twin = f"query number {number} is here", "the same text about giant pandas"
            others = ["x " * (number % 40), "a word " * 9]
            result = reranker.rerank(query, [others[0], twin, others[1], twin, twin])
            first, *rest = [one for one in result if one.index in (1, 3, 4)]
            assert [first.index, *(one.index for one in rest)] == [1, 3, 4]
            assert {one.score for one in rest} == {first.score}
        chunked = reranker.rerank(
            "q", [DOCUMENTS[0] * 9] * 3, chunking=Chunking(), truncation=Truncation(max_tokens=40)
        )
        assert [one.index for one in chunked] == [0, 1, 2]
        assert len({one.score for one in chunked}) == 1


def test_the_order_is_that_of_logits_where_scores_are_all_one(certain_checkpoint: Path) -> None:
    query, documents = QUERIES[0], DOCUMENTS[:40]
    model = CrossEncoder(str(certain_checkpoint), device="cpu", activation_fn=torch.nn.Identity())
    logits = [float(logit) for logit in model.predict([(query, document) for document in documents])]
    assert min(logits) > 40
    assert max(logits) - min(logits) > 100
    expected = sorted(range(len(documents)), key=lambda index: -logits[index])
    assert expected != sorted(expected)
    with Reranker(certain_checkpoint, device="cpu", dtype="float32") as reranker:
        result = reranker.rerank(query, documents)
        assert {document.score for document in result.documents} == {1.0}
        assert [document.index for document in result.documents] == expected
        best = reranker.rerank(query, documents, top_n=3)
        assert [document.index for document in best.documents] == expected[:3]
        raw = reranker.rerank(query, documents, top_n=3, activation=False)
        assert [document.index for document in raw.documents] == expected[:3]
        # A document is as good as its best chunk, told by logits too.
        worst, good = documents[expected[-1]], documents[expected[0]]
        joined = [worst, f"{worst} {good}"]
        split = reranker.rerank(query, joined, truncation=Truncation(max_tokens_per_doc=8), chunking=Chunking())
        chunk = split.documents[0].best_chunk
        assert chunk is not None
        texts = [one.best_chunk.text if one.best_chunk else joined[one.index] for one in split.documents]
        alone = reranker.score([(query, text) for text in texts], activation=False)
        assert alone == sorted(alone, reverse=True)


def test_the_shared_prefix_is_computed_once(reranker: Reranker) -> None:
    result = reranker.rerank(QUERIES[0], DOCUMENTS[:8])
    assert result.computed_tokens < result.prompt_tokens - 7 * 60


def test_no_documents_is_an_empty_answer(reranker: Reranker) -> None:
    assert reranker.rerank("q", []).documents == ()
    assert reranker.score([]) == []


def test_logits_in_place_of_scores(reranker: Reranker) -> None:
    scores = reranker.score(PAIRS[:5])
    logits = reranker.score(PAIRS[:5], activation=False)
    assert largest_difference([1 / (1 + math.exp(-logit)) for logit in logits], scores) < 1e-9


def test_async_twins_agree(reranker: Reranker) -> None:
    async def both() -> tuple[Any, list[float]]:
        return await reranker.arerank(QUERIES[0], DOCUMENTS, top_n=4), await reranker.ascore(PAIRS[:9])

    result, scores = asyncio.run(both())
    assert [d.index for d in result.documents] == [
        d.index for d in reranker.rerank(QUERIES[0], DOCUMENTS, top_n=4).documents
    ]
    assert largest_difference(scores, reranker.score(PAIRS[:9])) <= 1e-5


def test_cancelling_an_answer_drops_it(reranker: Reranker) -> None:
    request = RerankRequest(text_content("q"), tuple(text_content(d) for d in DOCUMENTS * 40))

    async def cancel() -> None:
        task = asyncio.create_task(reranker.answer(request))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert len(reranker.rerank("q", ["d"]).documents) == 1


def test_contents_may_be_parts(reranker: Reranker) -> None:
    parts = reranker.score([((Text("a "), Text("b")), (Text("c"),))])
    assert parts == pytest.approx(reranker.score([("a b", "c")]), abs=1e-6)


def test_truncation_is_reported_and_may_be_refused(reranker: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    documents = ["short", DOCUMENTS[-1]]
    result = reranker.rerank("q", documents, truncation=Truncation(max_tokens=120))
    assert result.truncated == (1,)
    assert [document.truncated for document in result.in_request_order()] == [False, True]
    assert max(document.prompt_tokens for document in result.documents) == 120
    with pytest.raises(InvalidRequest, match=r"documents\[1\].*120"):
        reranker.rerank("q", documents, truncation=Truncation(max_tokens=120, allowed=False))
    reranker.score([("q", d) for d in documents], truncation=Truncation(max_tokens=120))
    assert "1 of 2 pairs were cut to fit" in caplog.text


def test_an_instruction_without_use_is_reported(xlmr_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Reranker(xlmr_checkpoint, device="cpu", dtype="float32") as reranker:
        assert reranker.rerank("q", ["d"], instruction="do").ignored == ("instruction",)
        assert reranker.rerank("q", ["d"]).ignored == ()
        reranker.score([("q", "d")], instruction="do")
    assert "`instruction` has no effect" in caplog.text


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda r: r.rerank("q", "one string"), "documents"),
        (lambda r: r.rerank("q", ["d"], top_n=0), "top_n"),
        (lambda r: r.rerank("q", ["d"], truncation=Truncation(max_tokens=5)), "truncation.max_tokens"),
        (
            lambda r: r.rerank("q", {"text": "d"}),
            "documents: must be a list of documents, not one dict; put it in a list",
        ),
        (lambda r: r.rerank("q", 5), "documents: is of the type int; give a list"),
        (lambda r: r.rerank("q", None), "documents: is of the type NoneType"),
        (lambda r: r.rerank(["q"], {"text": "d"}), "documents: must be a list of documents, not one dict"),
        (lambda r: r.rerank("q", ["d"], instruction=5), "instruction: is of the type int; give a string"),
        (lambda r: r.rerank("q", ["d"], top_n="1"), "top_n: is of the type str; give a whole number"),
        (lambda r: r.rerank("q", ["d"], top_n=1.5), "top_n: is of the type float"),
        (lambda r: r.rerank("q", ["d"], top_n=True), "top_n: is of the type bool"),
        (lambda r: r.rerank("q", ["d"], min_score="x"), "min_score: is of the type str; give a number"),
        (lambda r: r.rerank("q", ["d"], truncation=5), "truncation: is of the type int; give a Truncation"),
        (lambda r: r.rerank("q", ["d"], truncation=None), "truncation: is of the type NoneType"),
        (
            lambda r: r.rerank("q", ["d"], truncation=Truncation(max_tokens="9")),
            "truncation.max_tokens: is of the type",
        ),
        (lambda r: r.rerank("q", ["d"], truncation=Truncation(side="up")), "side: is 'up'; give 'left' or 'right'"),
        (lambda r: r.rerank("q", ["d"], chunking=5), "chunking: is of the type int; give a Chunking"),
        (lambda r: r.rerank("q", ["d"], chunking=Chunking(overlap_tokens=None)), "chunking.overlap_tokens: is of the"),
        (lambda r: r.rerank("q", ["d"], on_error="Skip"), "on_error: is 'Skip'; give 'fail' or 'skip'"),
        (lambda r: asyncio.run(r.arerank("q", {"text": "d"})), "documents: must be a list"),
        (lambda r: r.rerank("q", [[Text(None)]]), r"documents\[0\]: has a Text of the type NoneType; give a string"),
        (
            lambda r: r.rerank("q", [[Image("x", max_pixels="9")]]),
            r"documents\[0\]: has '9' as max_pixels; give a whole",
        ),
        (lambda r: r.rerank([Video("x", fps="1")], ["d"]), "query: has '1' as fps; give a number"),
        (lambda r: r.rerank("q", [{"video": "x", "max_frames": 1.5}]), r"documents\[0\]: has 1.5 as max_frames"),
        (lambda r: r.score(["ab", "cd"]), r"pairs\[0\]: is of the type str; give a tuple of a query and a document"),
        (lambda r: r.score([("a", "b"), ("a", "b", "c")]), r"pairs\[1\]: has 3 items"),
        (lambda r: r.score([{"query": "a", "document": "b"}]), r"pairs\[0\]: is of the type dict"),
        (lambda r: r.score([5]), r"pairs\[0\]: is of the type int"),
        (lambda r: asyncio.run(r.ascore(["ab"])), r"pairs\[0\]: is of the type str"),
    ],
)
def test_bad_requests_are_value_errors_that_name_the_field(
    reranker: Reranker, call: Callable[[Reranker], Any], field: str
) -> None:
    with pytest.raises(ValueError, match=field) as raised:
        call(reranker)
    assert isinstance(raised.value, InvalidRequest)


def test_other_types_that_hold_the_same_are_taken(reranker: Reranker) -> None:
    import numpy

    expected = reranker.rerank("q", ["a", "b", "c"], top_n=2, min_score=0.0)
    found = reranker.rerank("q", iter(["a", "b", "c"]), top_n=numpy.int64(2), min_score=numpy.float32(0))  # type: ignore[call-overload]
    assert [one.index for one in found] == [one.index for one in expected]
    pairs = numpy.array([["q", "a"], ["q", "b"]])
    assert reranker.score(pairs) == pytest.approx(reranker.score([("q", "a"), ["q", "b"]]), abs=1e-5)  # type: ignore[list-item]


def test_no_query_is_no_result(reranker: Reranker) -> None:
    assert reranker.rerank([], ["a", "b"]) == []
    assert reranker.rerank([], []) == []


def test_an_unknown_option_names_the_nearest(xlmr_checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="no option 'dtpye'; the nearest is 'dtype'"):
        Reranker(xlmr_checkpoint, dtpye="float32")
    with pytest.raises(TypeError, match="no option 'x'; the options are model, revision, hub, device"):
        Reranker(LoadOptions("m"), x=1)


def test_the_package_lists_its_names() -> None:
    assert set(rerankd.__all__) <= set(dir(rerankd))
    assert all(getattr(rerankd, name) for name in rerankd.__all__)


def test_a_closed_reranker_says_so(xlmr_checkpoint: Path) -> None:
    reranker = Reranker(xlmr_checkpoint, device="cpu", dtype="float32")
    reranker.close()
    with pytest.raises(Exception, match="closed"):
        reranker.rerank("q", ["d"])


def test_texts_of_every_kind_score_alike_in_any_company(reranker: Reranker) -> None:
    odd = ["", " ", "\ud800 lone", "👩‍👩‍👧‍👦", "שלום", "法国的首都是巴黎。", "\x00", "word " * 200_000]
    together = [d.score for d in reranker.rerank("", odd, truncation=Truncation(max_tokens=512)).in_request_order()]
    alone = reranker.score([("", text) for text in odd], truncation=Truncation(max_tokens=512))
    assert all(0 < score < 1 for score in together)
    assert largest_difference(together, alone) <= 1e-5


def test_torch_stays_out_of_the_import() -> None:
    code = "import sys, rerankd; assert 'torch' not in sys.modules; rerankd.Reranker; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The Python face beside one query: lists of queries, the lowest score, frames, notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest

from rerankd import InvalidRequest, Reranker
from rerankd.core import Image, Text
from tests.texts import DOCUMENTS, QUERIES

TEXTS = list(DOCUMENTS[:12])


@pytest.fixture(scope="module")
def reranker(bert_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(str(bert_checkpoint), dtype="float32") as loaded:
        yield loaded


def scores(result: Any) -> dict[int, float]:
    return {document.index: document.score for document in result}


def test_a_result_iterates_over_its_documents(reranker: Reranker) -> None:
    result = reranker.rerank(QUERIES[0], TEXTS)
    assert list(result) == list(result.documents)
    assert [document.index for document in result] == [document.index for document in result.documents]
    best, *_ = result
    assert best is result.documents[0]


def test_several_queries_share_their_documents(reranker: Reranker) -> None:
    queries = list(QUERIES[:3])
    results = reranker.rerank(queries, TEXTS, top_n=5)
    assert isinstance(results, list)
    for query, result in zip(queries, results, strict=True):
        expected = reranker.rerank(query, TEXTS, top_n=5)
        assert [one.index for one in result] == [one.index for one in expected]
        assert scores(result) == pytest.approx(scores(expected), abs=1e-5)
    assert len({tuple(one.index for one in result) for result in results}) > 1


def test_several_queries_with_documents_of_their_own(reranker: Reranker) -> None:
    queries: list[Any] = [QUERIES[0], {"text": QUERIES[1]}, (Text(QUERIES[2]),)]
    documents = [TEXTS[:2], TEXTS[2:7], TEXTS[7:8]]
    results = reranker.rerank(queries, documents)
    for query, own, result in zip(QUERIES, documents, results, strict=False):
        assert scores(result) == pytest.approx(scores(reranker.rerank(query, own)), abs=1e-5)
    assert [result.scored for result in results] == [2, 5, 1]


def test_documents_of_an_iterator_are_those_of_every_query(reranker: Reranker) -> None:
    queries = list(QUERIES[:2])
    results = reranker.rerank(queries, iter(TEXTS))  # type: ignore[arg-type]
    for result, expected in zip(results, reranker.rerank(queries, TEXTS), strict=True):
        assert scores(result) == pytest.approx(scores(expected), abs=1e-5)


def test_one_query_of_parts_is_one_query(reranker: Reranker) -> None:
    result = reranker.rerank([Text(QUERIES[0])], [[Text(TEXTS[0])], (Text(TEXTS[1]),)])
    assert scores(result) == pytest.approx(scores(reranker.rerank(QUERIES[0], TEXTS[:2])), abs=1e-5)
    (one,) = reranker.rerank([QUERIES[0]], TEXTS[:2])
    assert scores(one) == pytest.approx(scores(result), abs=1e-5)


@pytest.mark.parametrize(
    ("queries", "documents", "field", "problem"),
    [
        (["a", "b"], [["x"], ["y"], ["z"]], "documents", "2 lists"),
        (["a", "b"], [["x"], "y"], "documents", "one list for all"),
        (["a", "b"], "xy", "documents", "not one string"),
        ([], [["x"], ["y"]], "documents", "0 lists"),
        (["a", 3], ["x"], "query", r"\(query 1 of the list\)"),
        (["a", "b"], [["x"], [[Image("x.png")]]], "documents[0]", r"\(query 1 of the list\)"),
    ],
)
def test_what_is_wrong_with_several_queries(
    queries: Any, documents: Any, field: str, problem: str, reranker: Reranker
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised:
        reranker.rerank(queries, documents)
    assert raised.value.field.startswith(field)


def test_low_scores_are_left_out_and_reported(reranker: Reranker) -> None:
    whole = reranker.rerank(QUERIES[0], TEXTS)
    bound = whole.documents[4].score
    result = reranker.rerank(QUERIES[0], TEXTS, min_score=bound)
    assert [one.index for one in result] == [one.index for one in whole.documents[:5]]
    assert result.below_min_score == tuple(sorted(one.index for one in whole.documents[5:]))
    assert (result.scored, result.prompt_tokens) == (12, whole.prompt_tokens)
    both = reranker.rerank(QUERIES[0], TEXTS, top_n=3, min_score=bound)
    assert [one.index for one in both] == [one.index for one in whole.documents[:3]]
    assert both.below_min_score == result.below_min_score
    assert list(reranker.rerank(QUERIES[0], TEXTS, min_score=2.0)) == []
    logits = reranker.rerank(QUERIES[0], TEXTS, activation=False)
    middle = logits.documents[4].score
    found = reranker.rerank(QUERIES[0], TEXTS, activation=False, min_score=middle)
    assert [one.index for one in found] == [one.index for one in logits.documents[:5]]
    with pytest.raises(InvalidRequest, match="min_score: must be a finite number"):
        reranker.rerank(QUERIES[0], TEXTS, min_score=float("nan"))


async def test_low_scores_are_left_out_of_an_awaited_answer(reranker: Reranker) -> None:
    whole = await reranker.arerank(QUERIES[0], TEXTS)
    result = await reranker.arerank(QUERIES[0], TEXTS, min_score=whole.documents[1].score)
    assert [one.index for one in result] == [one.index for one in whole.documents[:2]]


def frame() -> pandas.DataFrame:
    rows = [
        {"query": QUERIES[n % 2], "document": text, "source": f"s{n}", "score": "old"} for n, text in enumerate(TEXTS)
    ]
    return pandas.DataFrame(rows, index=[f"row{n}" for n in range(len(rows))])


def test_a_frame_is_ranked(reranker: Reranker) -> None:
    given = frame()
    before = given.copy()
    ranked = reranker.rank_frame(given)
    pandas.testing.assert_frame_equal(given, before)
    assert list(ranked.columns) == ["query", "document", "source", "score", "rank", "truncated"]
    assert list(dict.fromkeys(ranked["query"])) == [QUERIES[0], QUERIES[1]]
    for query, own in ranked.groupby("query", sort=False):
        texts = [text for text, of in zip(given["document"], given["query"], strict=True) if of == query]
        expected = reranker.rerank(query, texts)
        assert list(own["document"]) == [texts[one.index] for one in expected]
        assert list(own["score"]) == pytest.approx([one.score for one in expected], abs=1e-5)
        assert list(own["rank"]) == [1, 2, 3, 4, 5, 6]
    assert list(ranked.index) == [f"row{TEXTS.index(text)}" for text in ranked["document"]]
    best = reranker.rank_frame(given, top_n=2)
    assert list(best.index) == [*ranked.index[:2], *ranked.index[6:8]]


def test_a_frame_against_one_query(reranker: Reranker) -> None:
    given = frame().drop(columns="query").rename(columns={"document": "body"})
    ranked = reranker.rank_frame(given, QUERIES[3], document_column="body", min_score=0.0)
    expected = reranker.rerank(QUERIES[3], TEXTS)
    assert list(ranked["body"]) == [TEXTS[one.index] for one in expected]


def test_what_is_wrong_with_a_frame(reranker: Reranker) -> None:
    with pytest.raises(
        InvalidRequest, match="text: is not a column of the frame, which has query, document, source, score"
    ):
        reranker.rank_frame(frame(), document_column="text")
    broken = frame()
    broken.loc["row3", "document"] = None
    with pytest.raises(InvalidRequest, match=r"row 3, column document: has .*, which is not a text"):
        reranker.rank_frame(broken)
    for other in ([("a", "b")], {"query": ["a"], "document": ["b"]}, pandas.Series(["a"])):
        with pytest.raises(InvalidRequest, match=f"frame: is of the type {type(other).__name__}; give a pandas"):
            reranker.rank_frame(other, "a")  # type: ignore[arg-type]
    for bound, problem in (
        ({"min_score": float("nan")}, "min_score: must be a finite"),
        ({"top_n": "2"}, "top_n: is of"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            reranker.rank_frame(frame(), **bound)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="query: is of the type list"):
        reranker.rank_frame(frame(), ["a", "b"])  # type: ignore[list-item]


def test_what_is_wrong_with_a_cell_is_told_by_its_row(reranker: Reranker) -> None:
    """Rows of several queries; what the request itself calls `documents[1]` is another row."""
    for row, column, cell, problem in (
        (4, "document", {"txt": "x"}, "row 4, column document: has the unknown key 'txt'"),
        (3, "query", ["a", "b"], "row 3, column query: is of the type list"),
        (4, "document", {"image": "x.png"}, "row 4, column document: holds an image"),
        (5, "query", {"image": "x.png"}, "row 5, column query: holds an image"),
    ):
        broken = frame()
        broken[column] = [cell if n == row else old for n, old in enumerate(broken[column])]
        with pytest.raises(InvalidRequest, match=problem):
            reranker.rank_frame(broken)
    with pytest.raises(InvalidRequest, match=r"^query: .*image"):
        reranker.rank_frame(frame(), {"image": "x.png"})


def test_a_column_that_is_there_twice_is_refused(reranker: Reranker) -> None:
    rows = [["cats", "birds", "cats are great"], ["cats", "dogs", "dogs bark"]]
    twice = pandas.DataFrame(rows, columns=["query", "query", "document"])
    with pytest.raises(InvalidRequest, match="query: is not the name of one column alone"):
        reranker.rank_frame(twice)
    # A column that is not read may be there twice.
    ranked = reranker.rank_frame(twice, "cats")
    expected = reranker.rerank("cats", ["cats are great", "dogs bark"])
    assert list(ranked["score"]) == pytest.approx([one.score for one in expected], abs=1e-5)
    twice.columns = pandas.Index(["query", "document", "document"])
    for query in (None, "cats"):
        with pytest.raises(InvalidRequest, match="document: is not the name of one column alone"):
            reranker.rank_frame(twice, query)
    levels = pandas.MultiIndex.from_tuples([("query", ""), ("other", "x"), ("document", "")])
    ranked = reranker.rank_frame(pandas.DataFrame(rows, columns=levels))
    assert list(ranked["score"]) == pytest.approx([one.score for one in expected], abs=1e-5)


def test_cuts_of_a_frame_are_told(reranker: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    long = "word " * 3000
    given = pandas.DataFrame({"query": ["a", long, "a", long], "document": ["x", "y", long, "z"]})
    ranked = reranker.rank_frame(given, instruction="zzz")
    assert dict(ranked["truncated"]) == {0: False, 1: True, 2: True, 3: True}
    assert "3 of 4 rows were cut to fit, the first of them at 1" in caplog.messages
    assert any(message.startswith("`instruction` has no effect") for message in caplog.messages)
    caplog.clear()
    reranker.rank_frame(given.iloc[[0, 2]], min_score=1e9)
    assert caplog.messages == ["1 of 2 rows were cut to fit, the first of them at 1"]
    caplog.clear()
    assert not any(reranker.rank_frame(given.iloc[:1])["truncated"])
    assert caplog.messages == []


class Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_notebook_shows_a_table(reranker: Reranker) -> None:
    texts = ["<script>alert(1)</script> & more", "word " * 900, "short"]
    result = reranker.rerank("<b>what</b>", texts)
    shown = Cells(result._repr_html_())
    rows = [shown.cells[start : start + 5] for start in range(0, 15, 5)]
    assert [int(row[1]) for row in rows] == [one.index for one in result]
    assert [row[2] for row in rows] == [f"{one.score:.4f}" for one in result]
    bodies = {int(row[1]): row[4] for row in rows}
    assert bodies[0] == "<script>alert(1)</script> & more"
    assert "(cut to fit)" in bodies[1]
    assert len(bodies[1]) < 400
    assert "script" not in shown.tags
    assert re.search(rf"3 of 3 documents, {result.prompt_tokens:,} tokens, [\d.]+ ms", result._repr_html_())

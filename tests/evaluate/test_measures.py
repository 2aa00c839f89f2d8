"""Measures are ir-measures' own, tests of differences SciPy's, fusion that of the definition."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rerankd.evaluate.measures import (
    DEFAULT,
    MeasureError,
    best_first,
    fuse,
    load_run,
    mean,
    parse,
    read_judgments,
    values,
)
from rerankd.evaluate.statistics import EXACT_UP_TO, Difference, holm, randomisation_test
from rerankd.rank.files import BadLine, BadLines, FileProblem

QUERIES, DOCUMENTS = st.sampled_from("abcdefg"), st.sampled_from([f"d{n}" for n in range(14)])
JUDGMENTS = st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, st.integers(0, 3), min_size=1), min_size=1)
RUNS = st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, st.integers(-3, 3).map(float), min_size=1))


@given(judgments=JUDGMENTS, run=RUNS)
def test_means_are_those_of_ir_measures_to_the_last_digit(
    judgments: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    measures = parse(DEFAULT)
    found = values(measures, judgments, run)
    expected = ir_measures.calc_aggregate(list(measures.values()), judgments, run)
    for name, measure in measures.items():
        assert found[name].keys() == judgments.keys()
        assert mean(found[name]) == expected[measure]


@given(judgments=JUDGMENTS, run=RUNS)
def test_ndcg_is_that_of_the_definition(judgments: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> None:
    found = values(parse(["nDCG@10"]), judgments, run)["nDCG@10"]
    for query, grades in judgments.items():
        order = best_first(run.get(query, {}))[:10]
        gain = sum(grades.get(id, 0) / math.log2(rank + 2) for rank, id in enumerate(order))
        ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values())[::-1][:10]))
        assert found[query] == pytest.approx(gain / ideal if ideal else 0.0)


def test_measures_by_their_usual_names() -> None:
    assert list(parse(["MRR@10", "MAP", "nDCG@5"])) == ["RR@10", "AP", "nDCG@5"]
    for name in ("ndcg@10", "nDCG@", "import os"):
        with pytest.raises(MeasureError, match="is not a measure"):
            parse([name])


def test_numbers_of_documents_are_means_too() -> None:
    """ir-measures sums them; a report has means, and differences of means."""
    measures, judgments = parse(["NumRet", "NumRel", "NumQ"]), {"q": {"a": 1}, "r": {"a": 1}}
    run = {"q": {"a": 2.0, "b": 1.0, "c": 0.0}, "r": {"a": 1.0}}
    found = {name: mean(per_query) for name, per_query in values(measures, judgments, run).items()}
    assert found == {"NumRet": 2.0, "NumRel": 1.0, "NumQ": 1.0}
    sums = ir_measures.calc_aggregate(list(measures.values()), judgments, run)
    assert {name: 2 * value for name, value in found.items()} == {str(one): value for one, value in sums.items()}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nDCG@0", "nDCG@0: the cutoff 0 is below 1"),
        ("RR@0", "RR@0: the cutoff 0 is below 1"),
        (
            "alpha_nDCG@10",
            r"alpha_nDCG@10 cannot be computed here \(ValueError: Unsupported measures {alpha_nDCG@10}\)",
        ),
        ("nDCG@1.5", r"nDCG@1.5 cannot be computed here \(AssertionError: invalid param cutoff=1.5\)"),
        (
            "AP(rel=0)",
            r"AP\(rel=0\) cannot be computed here \(TypeError: Argument relevance_level should be positive\)",
        ),
        ("nDCG(foo=1)", r"nDCG\(foo=1\) cannot be computed here \(KeyError: 'foo'\)"),
    ],
)
def test_measures_that_cannot_be_computed(name: str, problem: str) -> None:
    with pytest.raises(MeasureError, match=problem):
        parse(["AP", name])


def test_a_measure_that_fails_on_the_files() -> None:
    """`Accuracy` divides by the number of pairs of a relevant and another document."""
    measures = parse(["AP", "Accuracy"])
    assert values(measures, {"q": {"a": 1, "b": 0}}, {"q": {"a": 2.0, "b": 1.0}})["Accuracy"] == {"q": 1.0}
    with pytest.raises(
        MeasureError, match=r"^Accuracy cannot be computed from these .*ZeroDivisionError.*leave it out"
    ):
        values(measures, {"q": {"a": 1}}, {"q": {"a": 2.0}})


@given(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=2, max_size=10))
def test_few_queries_have_an_exact_p(differences: list[float]) -> None:
    expected = stats.permutation_test(
        (np.array(differences),), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert randomisation_test(differences) == pytest.approx(expected)


def test_many_queries_have_a_sampled_p() -> None:
    random = np.random.default_rng(1)
    for shift in (0.0, 0.02, 0.05, 0.2):
        differences = (random.normal(shift, 0.2, 80)).tolist()
        assert len(differences) > EXACT_UP_TO
        p = randomisation_test(differences)
        assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
        assert p == randomisation_test(differences)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_wins_ties_and_losses() -> None:
    found = Difference.of([0.5, 0.5, 1.0, 0.1 + 0.2], [0.4, 0.9, 0.0, 0.3])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.mean == pytest.approx(0.175)
    assert Difference.of([0.5], [0.5]).p == 1.0


@given(st.lists(RUNS, min_size=1, max_size=3))
def test_fusion_is_that_of_the_definition(runs: list[dict[str, dict[str, float]]]) -> None:
    expected: dict[tuple[str, str], float] = defaultdict(float)
    for run in runs:
        for query, documents in run.items():
            for id in documents:
                above = sum((score, other) > (documents[id], id) for other, score in documents.items())
                expected[query, id] += 1 / (60 + above + 1)
    fused = fuse(runs)
    assert {(query, id): score for query, found in fused.items() for id, score in found.items()} == pytest.approx(
        expected
    )
    for found in fused.values():
        assert list(found.values()) == sorted(found.values(), reverse=True)


JUDGED = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qrels", "q1 0 d1 2\nq1 0 d2 0\n\nq2 0 d1 -1\n"),
        ("qrels.txt", "q1\t0\td1\t2\nq1\t0\td2\t0\nq2\t0\td1\t-1\n"),
        ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n"),
        ("test.tsv", "q1\t0\td1\t2\nq1\t0\td2\t0\nq2\t0\td1\t-1\n"),
        ("test.csv", "qid,docid,relevance\nq1,d1,2\nq1,d2,0\nq2,d1,-1\n"),
        ("test.csv", "qid,docid,relevance\nq1,d1,2.0\nq1,d2,0.0\nq2,d1,-1.0\n"),
        ("qrels", "q1 0 d1 2\nq1 0 d2 0\nq1 0 d1 2\nq2 0 d1 -1\n"),
        ("test.jsonl", '{"query_id": "q1", "doc_id": "d1", "rel": 2}\n{"query_id": "q1", "doc_id": "d2", "rel": 0}\n'
         '{"query_id": "q2", "doc_id": "d1", "rel": -1}\n'),
    ],
)  # fmt: skip
def test_judgments_in_every_form(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_judgments(str(tmp_path / name), BadLines()) == JUDGED


def test_judgments_in_parquet(tmp_path: Path) -> None:
    table = pyarrow.table({"query_id": ["q1", "q1", "q2"], "doc_id": ["d1", "d2", "d1"], "score": [2, 0, -1]})
    for kind in (pyarrow.int64(), pyarrow.float64()):
        typed = table.set_column(2, "score", table["score"].cast(kind))
        pyarrow.parquet.write_table(typed, tmp_path / "test.parquet")
        assert read_judgments(str(tmp_path / "test.parquet"), BadLines()) == JUDGED


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("q1 0 d1 2\nq1 0 d1\n", "line 2: has 3 columns; judgments have 4"),
        ("q1 0 d1 2\nq1 0 d2 good\n", "line 2: the grade 'good' is not an integer"),
        ("q1 0 d1 2\nq1 0 d2 0.5\n", "line 2: the grade '0.5'"),
        ("q1 0 d1 2\nq1 0 d2 nan\n", "line 2: the grade 'nan' is not an integer"),
        ("q1 0 d1 2\nq1 0 d2 inf\n", "line 2: the grade 'inf' is not an integer"),
        (
            "q1 0 d1 2\nq1 0 d1 0\n",
            "line 2: the query 'q1' has the document 'd1' twice, with the grades 2 and 0; keep one",
        ),
    ],
)
def test_bad_judgments(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(content)
    with pytest.raises(BadLine, match=problem):
        read_judgments(str(tmp_path / "qrels"), BadLines())
    assert read_judgments(str(tmp_path / "qrels"), BadLines(skip=True)) == {"q1": {"d1": 2}}
    (tmp_path / "qrels").write_text("")
    with pytest.raises(FileProblem, match="holds no judgment"):
        read_judgments(str(tmp_path / "qrels"), BadLines())


def test_a_document_twice_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q Q0 a 1 3 t\nq Q0 b 2 2 t\nq Q0 a 3 1 t\n")
    with pytest.raises(BadLine, match="line 3: the query 'q' has the document 'a' twice"):
        load_run(str(tmp_path / "run.trec"), BadLines())
    assert load_run(str(tmp_path / "run.trec"), BadLines(skip=True)) == {"q": {"a": 3.0, "b": 2.0}}

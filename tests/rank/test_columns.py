"""What the columns and the first bytes of a file mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rerankd.core import Content, Image, Text
from rerankd.evaluate.measures import load_run, read_judgments
from rerankd.rank.batch import _requests
from rerankd.rank.collection import Collection
from rerankd.rank.files import MARK, BadLine, BadLines, FileProblem, Source
from rerankd.rank.pairs import Pairs
from rerankd.rank.rows import rows
from rerankd.rank.texts import TEXTS, text_of
from rerankd.rank.values import to_content
from tests.rank.test_files import texts

ONE = {"q1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.qrels", "q1 0 d1 1\nq1 0 d2 0\n"),
        ("a.tsv", "q1\td1\t1\nq1\td2\t0\n"),
        ("a.csv", '"query_id","id","grade"\nq1,d1,1\nq1,d2,0\n'),
        ("a.jsonl", '{"qid": "q1", "id": "d1", "grade": 1}\n{"qid": "q1", "id": "d2", "grade": 0}\n'),
    ],
)
def test_a_mark_before_judgments_is_no_part_of_them(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(MARK + content.encode())
    assert read_judgments(str(tmp_path / name), BadLines()) == ONE


def test_a_mark_before_any_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_bytes(MARK + b"q1 Q0 d1 1 1 t\nq1 Q0 d2 2 0 t\n")
    assert load_run(str(tmp_path / "run.trec"), BadLines()) == ONE
    (tmp_path / "c.csv").write_bytes(MARK + b'"id","text"\nd1,one\n')
    (tmp_path / "q.tsv").write_bytes(MARK + b"q1\twhat\n")
    found = Collection(str(tmp_path / "q.tsv"), str(tmp_path / "c.csv"), [], None, BadLines())
    assert texts(found) == {"q1": ("what", {"d1": "one"})}
    request = {"custom_id": "a", "url": "/v1/rerank", "body": {}}
    (tmp_path / "b.jsonl").write_bytes(MARK + json.dumps(request).encode())
    (read,) = _requests(Source(str(tmp_path / "b.jsonl")), BadLines())
    assert read.id == "a"


def test_only_the_first_line_loses_a_mark(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_bytes(b"q1\twhat\n" + MARK + b"q2\twho\n")
    read = [text_of(Source("q.tsv"), n, row) for n, row in rows(Source(str(tmp_path / "q.tsv")), TEXTS, BadLines())]
    assert read == [("q1", "what"), ("\ufeffq2", "who")]


@pytest.mark.parametrize(
    "content",
    [
        "query_id,query,doc_id,document,score\nq1,what is it,d1,a text,1\nq1,what is it,d2,a text,0\n",
        "document,score,query,doc_id,query_id\na text,1,what is it,d1,q1\na text,0,what is it,d2,q1\n",
    ],
)
def test_the_first_name_of_a_meaning_is_read_in_a_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text(content)
    said: list[str] = []
    assert load_run(str(tmp_path / "run.csv"), BadLines(tell=said.append)) == ONE
    assert said == [
        f"{tmp_path}/run.csv: `query` is not used, because `query_id` has the same meaning",
        f"{tmp_path}/run.csv: `document` is not used, because `doc_id` has the same meaning",
    ]


def test_the_first_name_of_a_meaning_is_read_in_results(tmp_path: Path) -> None:
    results = [{"document_id": "d1", "id": "x", "score": 1}, {"id": "x", "document_id": "d2", "score": 0}]
    (tmp_path / "run.jsonl").write_text(json.dumps({"query_id": "q1", "results": results}))
    said: list[str] = []
    assert load_run(str(tmp_path / "run.jsonl"), BadLines(tell=said.append)) == ONE
    assert said == [f"{tmp_path}/run.jsonl: `id` is not used, because `document_id` has the same meaning"]


def test_the_first_name_of_a_meaning_is_read_in_texts_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "what"}')
    (tmp_path / "c.jsonl").write_text('{"pid": "p", "docid": "d", "id": "d1", "passage": "no", "text": "one"}')
    said: list[str] = []
    found = Collection(str(tmp_path / "q.jsonl"), str(tmp_path / "c.jsonl"), [], None, BadLines(tell=said.append))
    assert texts(found) == {"q1": ("what", {"d1": "one"})}
    assert [note.partition(": ")[2].split(",")[0] for note in said] == [
        "`docid` is not used", "`pid` is not used", "`passage` is not used",
    ]  # fmt: skip
    said.clear()
    (tmp_path / "p.csv").write_text("query,question,document\nwhat,no,one\nwhat,no,two\n")
    pairs = Pairs(str(tmp_path / "p.csv"), None, BadLines(tell=said.append))
    assert texts(pairs) == {"2": ("what", {"0": "one", "1": "two"})}
    assert said == [f"{tmp_path}/p.csv: `question` is not used, because `query` has the same meaning"]


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
def test_a_header_has_each_name_once(name: str, tmp_path: Path) -> None:
    header = "query,document,Document,,\nwhat,one,two,,\n"
    (tmp_path / name).write_text(header if name == "p.csv" else header.replace(",", "\t"))
    with pytest.raises(FileProblem, match=f"{name}, line 1: the header has the column `document` twice; remove or"):
        list(Pairs(str(tmp_path / name), None, BadLines(skip=True)))


def test_a_parquet_file_has_each_name_once(tmp_path: Path) -> None:
    table = pyarrow.table([["what"], ["one"], ["two"]], names=["query", "document", "document"])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(FileProblem, match=r"p.parquet: the header has the column `document` twice"):
        list(Pairs(str(tmp_path / "p.parquet"), None, BadLines()))


def test_the_first_row_gives_the_columns(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("what\tone\nwhat\tis\tit\ttwo\nwhat\tthree\n")
    with pytest.raises(BadLine, match=r"p.tsv, line 2: has 4 columns, but line 1 has 2; no text may have a tab\.$"):
        list(Pairs(str(tmp_path / "p.tsv"), None, BadLines()))
    bad = BadLines(skip=True, tell=lambda text: None)
    assert texts(Pairs(str(tmp_path / "p.tsv"), None, bad)) == {"1": ("what", {"0": "one", "1": "three"})}
    assert bad.count == 1


def test_a_quote_that_nothing_closes_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('query,document\nwhat,one\nwhat,"two\nwhat,three\nwhat,four\n')
    said: list[str] = []
    (query,) = Pairs(str(tmp_path / "p.csv"), None, BadLines(skip=True, tell=said.append))
    assert [content for _, content in query.documents] == [(Text("one"),)]
    (note,) = said
    assert note.endswith(
        "p.csv, line 3: has a quote that nothing closes, so this and all later lines are one row; close the quote."
    )


IMAGE_PART = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"text": "body"}, (Text("A title body"),)),
        ({"text": ""}, (Text("A title"),)),
        ({}, (Text("A title"),)),
        ({"image": "x.png"}, (Image("x.png"), Text("A title"))),
        ({"image": "x.png", "text": "body"}, (Image("x.png"), Text("A title body"))),
        ({"text": {"image": "x.png", "text": "body"}}, (Image("x.png"), Text("A title body"))),
        ({"text": {"image": "x.png"}}, (Image("x.png"), Text("A title"))),
        ({"text": {"content": "body"}}, (Text("A title body"),)),
        ({"text": ["body", "more"]}, (Text("A title body"), Text("more"))),
        ({"text": [IMAGE_PART, {"type": "text", "text": "body"}]}, (Image("x.png"), Text("A title body"))),
        ({"text": {"content": [IMAGE_PART]}}, (Text("A title"), Image("x.png"))),
    ],
)
def test_a_title_is_before_every_form_of_text(row: dict[str, Any], content: Content) -> None:
    id, value = text_of(Source("c.jsonl"), 1, {"id": 7, "title": "A title", **row})
    assert (id, to_content(value, "text")) == ("7", content)


@pytest.mark.parametrize(("name", "separator"), [("c.tsv", "\t"), ("c.csv", ",")])
def test_an_empty_cell_is_no_image(name: str, separator: str, tmp_path: Path) -> None:
    rows = ["id,text,image,video", "a,one,,", "b,two,x.png,"]
    (tmp_path / name).write_text("\n".join(row.replace(",", separator) for row in rows))
    (tmp_path / "q.tsv").write_text("q\twhat\n")
    (query,) = Collection(str(tmp_path / "q.tsv"), str(tmp_path / name), [], None, BadLines())
    assert dict(query.documents) == {"a": (Text("one"),), "b": (Image("x.png"), Text("two"))}


@pytest.mark.parametrize("named", [0, 1])
def test_a_given_id_is_no_number_of_a_line(named: int, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": word, "documents": [word]} for word in "ab"]
    rows[named]["id"] = str(2 - named)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    id = str(2 - named)
    with pytest.raises(BadLine, match=f"p.jsonl, line 2: the query '{id}' is already on line 1; a query without an id"):
        list(Pairs(str(tmp_path / "p.jsonl"), None, BadLines()))
    bad = BadLines(skip=True, tell=lambda text: None)
    assert texts(Pairs(str(tmp_path / "p.jsonl"), None, bad)) == {id: ("a", {"0": "a"})}
    assert bad.count == 1

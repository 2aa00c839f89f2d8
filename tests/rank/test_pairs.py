"""Files of pairs, and lines and files that cannot be read."""

from __future__ import annotations

import base64
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from rerankd.core import Image, Text, Video
from rerankd.rank import documents
from rerankd.rank.collection import Collection
from rerankd.rank.files import BadLine, BadLines, FileProblem
from rerankd.rank.pairs import Pairs
from rerankd.rank.queries import Query
from tests.rank.test_files import texts


def pairs(tmp_path: Path, name: str, content: str | bytes, bad: BadLines | None = None) -> list[Query]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(Pairs(str(path), None, bad or BadLines()))


def test_pairs_take_what_the_python_api_takes(tmp_path: Path) -> None:
    line = {
        "id": "first",
        "query": {"text": "find this", "image": "a.png"},
        "documents": [
            "plain",
            {"id": "own", "text": "with an id"},
            {"video": "film.mp4", "fps": 2},
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b.png", "max_pixels": 9}}],
            {"content": "vLLM's"},
        ],
        "instruction": "match",
    }
    (query,) = pairs(tmp_path, "pairs.jsonl", json.dumps(line))
    assert (query.id, query.instruction, query.count) == ("first", "match", 5)
    assert query.content == (Image("a.png"), Text("find this"))
    assert list(query.documents) == [
        ("0", (Text("plain"),)),
        ("own", (Text("with an id"),)),
        ("2", (Video("film.mp4", 2),)),
        ("3", (Text("a"), Image("b.png", None, 9))),
        ("4", (Text("vLLM's"),)),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.tsv", "7\ta\twhat\tone\n7\tb\twhat\ttwo\n8\ta\twho\tone\n"),
        ("p.csv", 'qid,pid,query,passage\n7,a,what,one\n7,b,what,"two"\n8,a,who,one\n'),
        ("p.tsv", "document\tquery\tquery-id\tid\tother\none\twhat\t7\ta\t-\ntwo\twhat\t7\tb\t-\none\twho\t8\ta\t-\n"),
        (
            "p.jsonl",
            '{"qid": 7, "query": "what", "documents": [{"docid": "a", "text": "one"}, {"id": "b", "text": "two"}]}\n'
            '\n{"query_id": 8, "query": "who", "documents": [{"_id": "a", "text": "one"}]}',
        ),
    ],
)
def test_pairs_in_other_formats(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    read = texts(Pairs(str(path), None, BadLines()))
    assert read == {"7": ("what", {"a": "one", "b": "two"}), "8": ("who", {"a": "one"})}


def test_pairs_in_parquet(tmp_path: Path) -> None:
    table = pyarrow.table({"query": ["what", "who"], "documents": [["one", "two"], ["one"]]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    read = texts(Pairs(str(tmp_path / "p.parquet"), 1, BadLines()))
    assert read == {"1": ("what", {"0": "one"}), "2": ("who", {"0": "one"})}


PIXELS = b"\x89PNG and more"
URL = f"data:image/png;base64,{base64.b64encode(PIXELS).decode()}"


def test_pictures_in_parquet(tmp_path: Path) -> None:
    """As Hugging Face's datasets hold them, as bytes alone, and as paths."""
    held = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array(
        [{"bytes": PIXELS, "path": "a.jpg"}, {"bytes": PIXELS, "path": None}, {"bytes": None, "path": "a.png"}], held
    )
    corpus = pyarrow.table({"corpus-id": ["a", "b", "c"], "image": images, "text": [None, "t", None]})
    pyarrow.parquet.write_table(corpus, tmp_path / "c.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": [7], "image": [PIXELS]}), tmp_path / "q.parquet")
    (query,) = Collection(str(tmp_path / "q.parquet"), str(tmp_path / "c.parquet"), [], None, BadLines())
    assert query.content == (Image(URL),)
    assert dict(query.documents) == {
        "a": (Image(URL.replace("png", "jpeg")),),
        "b": (Image(URL), Text("t")),
        "c": (Image("a.png"),),
    }
    documents = [[{"text": "one", "image": None}, {"text": None, "image": {"bytes": PIXELS, "path": None}}]]
    pyarrow.parquet.write_table(pyarrow.table({"query": ["what"], "documents": documents}), tmp_path / "p.parquet")
    (query,) = Pairs(str(tmp_path / "p.parquet"), None, BadLines())
    assert [content for _, content in query.documents] == [(Text("one"),), (Image(URL),)]


def test_a_querys_rows_are_its_own(tmp_path: Path) -> None:
    def rows(*cells: str) -> str:
        return "qid\tid\tquery\tdocument\tgrade\n" + "".join("\t".join(one.split()) + "\n" for one in cells)

    good = rows("1 a what x 1", "1 b what y 1", "2 a who x 1")
    said: list[str] = []
    read = pairs(tmp_path, "p.tsv", good, BadLines(tell=said.append))
    assert [(query.id, query.count) for query in read] == [("1", 2), ("2", 1)]
    (note,) = said
    assert note.endswith("p.tsv: columns that are not used: grade")
    for cells, problem in (
        (("1 a what x 1", "2 a who x 1", "1 b what y 1"), "line 4: the query '1' is already on line 2"),
        (("1 a what x 1", "1 b who y 1", "2 a who x 1"), "line 3: the text of query '1' differs from line 2"),
        (("1 a what x 1", "1 a what y 1", "2 a who x 1"), "line 3: the query has the document 'a' twice"),
    ):
        with pytest.raises(BadLine, match=problem):
            pairs(tmp_path, "p.tsv", rows(*cells))
        skipping = BadLines(skip=True, tell=lambda text: None)
        assert [query.id for query in pairs(tmp_path, "p.tsv", rows(*cells), skipping)] == ["1", "2"]
        assert skipping.count == 1


def test_each_row_has_its_own_instruction(tmp_path: Path) -> None:
    def rows(*cells: dict[str, str]) -> str:
        return "".join(json.dumps({"query": "what", **row}) + "\n" for row in cells)

    one, other, none = {"document": "a", "instruction": "x"}, {"document": "b", "instruction": "y"}, {"document": "c"}
    queries = list(pairs(tmp_path, "p.jsonl", rows(one, {**one, "document": "d"}, other, none)))
    assert [(query.instruction, [text for _, (text,) in query.documents]) for query in queries] == [
        ("x", [Text("a"), Text("d")]),
        ("y", [Text("b")]),
        (None, [Text("c")]),
    ]
    # Rows that name one query cannot ask it in two ways.
    with pytest.raises(BadLine, match="line 2: the instruction of query '1' differs from line 1"):
        list(pairs(tmp_path, "p.jsonl", rows({**one, "query_id": "1"}, {**other, "query_id": "1"})))
    (query,) = pairs(tmp_path, "p.jsonl", rows({**one, "query_id": "1"}, {**none, "query_id": "1"}))
    assert query.instruction == "x"


def test_a_bad_row_takes_no_other_with_it(tmp_path: Path) -> None:
    sent: list[Any] = ["one", 3, "three"]
    lines = "".join(json.dumps({"query": "what", "document": document}) + "\n" for document in sent)
    said: list[str] = []
    (query,) = pairs(tmp_path, "p.jsonl", lines, BadLines(skip=True, tell=said.append))
    assert list(query.documents) == [("0", (Text("one"),)), ("2", (Text("three"),))]
    (line,) = said
    assert "p.jsonl, line 2: documents[1]" in line


def test_many_documents_of_a_query_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MEMORY_BYTES", 100)
    lines = "".join(f"what\t{'word ' * number}\n" for number in range(1, 60))
    (query,) = pairs(tmp_path, "p.tsv", lines)
    expected = [(str(number - 1), (Text("word " * number),)) for number in range(1, 60)]
    assert list(query.documents) == list(query.documents) == expected
    assert query.documents._file._rolled  # type: ignore[attr-defined]
    (tmp_path / "p.tsv").write_text(lines)
    (query,) = Pairs(str(tmp_path / "p.tsv"), 7, BadLines())
    assert list(query.documents) == expected[:7]


GOOD = '{"query": "what", "documents": ["one"]}\n'


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("p.jsonl", GOOD + "{oops\n" + GOOD, 2, "is not JSON"),
        ("p.jsonl", GOOD + "[1]\n", 2, "is not a JSON object"),
        ("p.jsonl", GOOD.encode() + b'{"query": "\xff", "documents": ["a"]}\n', 2, "is not valid UTF-8 at byte 11"),
        ("p.jsonl", GOOD + "\n" + '{"documents": ["a"]}\n', 3, "has no `query`"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": []}\n', 2, "`documents` is empty"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": "b"}\n', 2, "`documents` is empty or not a list"),
        ("p.jsonl", GOOD + '{"query": "a"}\n', 2, "has neither `documents` nor `document`."),
        (
            "p.jsonl",
            GOOD + '{"query": "a", "documents": ["b", 3]}\n',
            2,
            r"documents\[1\]: must be a text, an object of text, image and video, or a list of parts.$",
        ),
        ("p.jsonl", GOOD + '{"query": "a", "documents": [{"txt": "b"}]}\n', 2, "unknown key 'txt'"),
        (
            "p.jsonl",
            GOOD + '{"query": "a", "documents": [{"id": 1, "text": "b"}, {"id": "1", "text": "c"}]}\n',
            2,
            "'1'",
        ),
        ("p.jsonl", GOOD + '{"query": "a", "documents": ["b"], "instruction": 3}\n', 2, "`instruction`"),
        ("p.tsv", "what\tone\nwhat\n", 2, "has 1 column"),
        ("p.tsv", "query\tdocument\nwhat\tone\nwhat\n", 3, "has 1 column, but the header has 2"),
        ("p.csv", 'query,document\nwhat,one\n"what",one,two\n', 3, "has 3 columns, but the header has 2"),
        ("p.csv", b"query,document\nwhat,one\nwhat,\xff\n", 3, "is not valid UTF-8"),
        ("p.csv", 'query,document\n"what\never",one\nwhat\n', 4, "has 1 column"),
    ],
)
def test_bad_lines_are_told_by_number(name: str, content: str | bytes, line: int, problem: str, tmp_path: Path) -> None:
    with pytest.raises(BadLine, match=rf"{name}, line {line}: .*{problem}"):
        pairs(tmp_path, name, content)
    said: list[str] = []
    skipping = BadLines(skip=True, tell=said.append)
    assert next(query.count for query in pairs(tmp_path, name, content, skipping)) == 1
    assert skipping.count == len(said) == 1
    assert f"line {line}: " in said[0]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "line 2: the id 'a' is already on line 1",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"text": "y"}\n', "line 2: has no `id`"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b"}\n', "line 2: has no `text`"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b", "text": [3]}\n', "line 2: text"),
        (
            "queries.jsonl",
            '{"_id": "q", "text": "x"}\n{"_id": "q", "text": "y"}\n',
            "line 2: the id 'q' is already on line 1",
        ),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a\n", "line 2: has 3 columns"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a 1 high t\n", "line 2: 'high' is not a number"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a 1 nan t\n", "line 2: 'nan' is not a number"),
        ("run.trec", "q Q0 a 1 2.0 t\nz Q0 a 1 2.0 t\n", "line 2: .* has no query 'z'"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 zz 1 1.0 t\n", "has no document 'zz', which a run names for query 'q'"),
    ],
)
def test_bad_lines_of_a_collection(file: str, content: str, problem: str, tmp_path: Path) -> None:
    files = {
        "queries.jsonl": '{"_id": "q", "text": "x"}\n',
        "corpus.jsonl": '{"_id": "a", "text": "x"}\n',
        "run.trec": "q Q0 a 1 2.0 t\n",
        file: content,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def read(bad: BadLines) -> dict[str, Any]:
        return texts(Collection(str(tmp_path), str(tmp_path), [str(tmp_path / "run.trec")], None, bad))

    if file != "corpus.jsonl" or "line 1" in problem:
        with pytest.raises(FileProblem, match=problem):
            read(BadLines())
    said: list[str] = []
    assert read(BadLines(skip=True, tell=said.append)) == {"q": ("x", {"a": "x"})}
    (one,) = said
    assert one.startswith("left out: ")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("nowhere.tsv", "c.tsv"), "nowhere.tsv cannot be read: No such file"),
        (("q.tsv", "empty"), r"without a file corpus\.jsonl"),
        (("empty.tsv", "c.tsv"), "holds no query"),
        (("q.tsv", "empty.tsv"), "holds no document"),
        (("q.tsv", "torn.jsonl.gz"), "torn.jsonl.gz cannot be read"),
        (("q.tsv", "wrong.jsonl.gz"), "wrong.jsonl.gz cannot be read: Error -3"),
        (("q.tsv", "torn.csv.gz"), "torn.csv.gz cannot be read"),
        (("q.tsv", "flipped.parquet"), "flipped.parquet cannot be read"),
        (("q.tsv", "torn.jsonl.zst"), "torn.jsonl.zst cannot be read"),
        (("q.tsv", "cut.jsonl.zst"), "the file ends in the middle"),
        (("q.tsv", "no.parquet"), "is not a Parquet file"),
        (("q.tsv", "no.csv"), "must begin with a header"),
    ],
)
def test_files_that_cannot_be_read(names: tuple[str, str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "q.tsv").write_text("q\twhat\n")
    (tmp_path / "c.tsv").write_text("d\tthat\n")
    (tmp_path / "empty.tsv").write_text("")
    lines = "".join(f'{{"id": "{number}", "text": "{number * number}"}}\n' for number in range(1000)).encode()
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(lines)[:-9])
    packed = gzip.compress(lines)
    (tmp_path / "wrong.jsonl.gz").write_bytes(packed[:500] + b"\xff" * 50 + packed[550:])
    (tmp_path / "torn.csv.gz").write_bytes(
        gzip.compress(b"id,text\n" + b"".join(b"%d,a\n" % number for number in range(1000)))[:-9]
    )
    table = pyarrow.table({"id": [str(number) for number in range(1000)], "text": ["a text"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "flipped.parquet")
    damaged = bytearray((tmp_path / "flipped.parquet").read_bytes())
    damaged[8:400] = bytes(392)
    (tmp_path / "flipped.parquet").write_bytes(damaged)
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(lines)[:-1])
    (tmp_path / "torn.jsonl.zst").write_bytes(b"not at all")
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    (tmp_path / "no.csv").write_text("a,b\n")
    with pytest.raises(FileProblem, match=problem):
        Collection(*(str(tmp_path / name) for name in names), [], None, BadLines())


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (query,) = pairs(
        tmp_path, "p.jsonl", '{"query": "a\\ud800", "documents": [{"id": "\\udfff", "text": "\\ud83d\\ude00"}]}'
    )
    assert query.content == (Text("a\ufffd"),)
    assert list(query.documents) == [("\ufffd", (Text("\U0001f600"),))]
    assert math.isfinite(query.count)

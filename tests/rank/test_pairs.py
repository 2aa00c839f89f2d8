"""Files of pairs, and lines and files that cannot be read."""

from __future__ import annotations

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


GOOD = '{"query": "what", "documents": ["one"]}\n'


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("p.jsonl", GOOD + "{oops\n" + GOOD, 2, "is not JSON"),
        ("p.jsonl", GOOD + "[1]\n", 2, "is not a JSON object"),
        ("p.jsonl", GOOD.encode() + b'{"query": "\xff", "documents": ["a"]}\n', 2, "is not UTF-8: byte 11"),
        ("p.jsonl", GOOD + "\n" + '{"documents": ["a"]}\n', 3, "has no `query`"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": []}\n', 2, "`documents`, or an empty one"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": "b"}\n', 2, "has no list of `documents`"),
        ("p.jsonl", GOOD + '{"query": "a"}\n', 2, "has no `document`"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": ["b", 3]}\n', 2, r"documents\[1\]"),
        ("p.jsonl", GOOD + '{"query": "a", "documents": [{"txt": "b"}]}\n', 2, "no use for the key 'txt'"),
        (
            "p.jsonl",
            GOOD + '{"query": "a", "documents": [{"id": 1, "text": "b"}, {"id": "1", "text": "c"}]}\n',
            2,
            "'1'",
        ),
        ("p.jsonl", GOOD + '{"query": "a", "documents": ["b"], "instruction": 3}\n', 2, "`instruction`"),
        ("p.tsv", "what\tone\nwhat\n", 2, "has 1 columns"),
        ("p.tsv", "query\tdocument\nwhat\tone\nwhat\n", 3, "has 1 columns, the header 2"),
        ("p.csv", 'query,document\nwhat,one\n"what",one,two\n', 3, "has 3 columns, the header 2"),
        ("p.csv", b"query,document\nwhat,one\nwhat,\xff\n", 3, "is not UTF-8"),
        ("p.csv", 'query,document\n"what\never",one\nwhat\n', 4, "has 1 columns"),
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
            "line 2: the id 'a' is on line 1 too",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"text": "y"}\n', "line 2: has no `id`"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b"}\n', "line 2: has no `text`"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b", "text": [3]}\n', "line 2: text"),
        (
            "queries.jsonl",
            '{"_id": "q", "text": "x"}\n{"_id": "q", "text": "y"}\n',
            "line 2: the id 'q' is on line 1 too",
        ),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a\n", "line 2: has 3 columns"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a 1 high t\n", "line 2: 'high' is not a number"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 a 1 nan t\n", "line 2: 'nan' is not a number"),
        ("run.trec", "q Q0 a 1 2.0 t\nz Q0 a 1 2.0 t\n", "line 2: .* has no query 'z'"),
        ("run.trec", "q Q0 a 1 2.0 t\nq Q0 zz 1 1.0 t\n", "has no document 'zz', which the run has for query 'q'"),
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
        (("q.tsv", "empty"), r"holds no corpus\.jsonl"),
        (("empty.tsv", "c.tsv"), "holds no query"),
        (("q.tsv", "empty.tsv"), "holds no document"),
        (("q.tsv", "torn.jsonl.gz"), "torn.jsonl.gz cannot be read"),
        (("q.tsv", "wrong.jsonl.gz"), "wrong.jsonl.gz cannot be read: Error -3"),
        (("q.tsv", "torn.csv.gz"), "torn.csv.gz cannot be read"),
        (("q.tsv", "torn.jsonl.zst"), "torn.jsonl.zst cannot be read"),
        (("q.tsv", "cut.jsonl.zst"), "it ends in the middle"),
        (("q.tsv", "no.parquet"), "is not a Parquet file"),
        (("q.tsv", "no.csv"), "begins with a header"),
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

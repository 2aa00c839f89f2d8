"""What `bench serve` sends, lines of a file or random texts, and when."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerankd.bench.load import Traffic
from rerankd.bench.samples import random_rerank
from tests.bench.fake_server import Fake
from tests.bench.test_serve import bench, lines


def test_jsonl_sends_the_lines_in_turn_with_their_fields(fake: Fake, tmp_path: Path) -> None:
    first = {"query": "q1", "documents": ["a", [{"type": "text", "text": "b"}]], "instruct": "judge", "top_n": 1}
    second = {"query": "q2", "texts": ["c"]}
    path = lines(tmp_path / "in.jsonl", first, second)
    fake.drop = 0
    result = bench(
        *("--base-url", fake.url, "--model", "m", "--dataset-name", "jsonl", "--dataset-path", path),
        *("--num-prompts", 5, "--max-concurrency", 1),
    )
    # The fake server scores every document, so that the line that asks for one result fails.
    assert result.exit_code == 1
    assert "the answer has 2 results, not 1" in result.stderr
    lines(path, {**first, "top_n": 2}, second)
    result = bench(
        *("--base-url", fake.url, "--model", "m", "--dataset-name", "jsonl", "--dataset-path", path),
        *("--num-prompts", 5, "--max-concurrency", 1),
    )
    assert result.exit_code == 0, result.output
    assert [body["query"] for body in fake.bodies[-5:]] == ["q1", "q2", "q1", "q2", "q1"]
    assert fake.bodies[-1]["documents"] == first["documents"]
    assert fake.bodies[-1]["instruct"] == "judge"
    assert fake.bodies[-2]["documents"] == ["c"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", ":1: not JSON"),
        ("[1]", ":1: not a JSON object"),
        ('{"query": "q", "documents": ["a"]}\n\n{"documents": ["a"]}', ":3: query: missing"),
        ('{"query": "q", "documents": []}', ":1: documents: must be a list of at least one"),
        ("\n\n", "holds no line"),
    ],
)
def test_a_bad_jsonl_names_the_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    result = bench("--model", "m", "--dataset-name", "jsonl", "--dataset-path", path)
    assert result.exit_code == 1
    assert problem in result.stderr


@settings(max_examples=30)
@given(
    input_len=st.integers(8, 200),
    documents=st.integers(1, 6),
    batch=st.integers(1, 4),
    ratio=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_random_texts_have_the_length_asked_for(
    tokenizer: Tokenizer, input_len: int, documents: int, batch: int, ratio: float, seed: int
) -> None:
    samples = random_rerank(tokenizer, documents, input_len, batch, ratio, seed)
    assert [len(sample.documents) for sample in samples] == [
        min(batch, documents - start) for start in range(0, documents, batch)
    ]
    assert len({sample.query for sample in samples}) == 1

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    for sample in samples:
        assert sample.tokens == sum(count(sample.query) + 1 + count(text) for text in sample.documents)
    assert random_rerank(tokenizer, documents, input_len, batch, ratio, seed) == samples


def test_most_random_pairs_have_exactly_the_length(tokenizer: Tokenizer) -> None:
    counts = [sample.tokens for sample in random_rerank(tokenizer, 200, 200, 1, 0.0, 3)]
    # MiniLM's tokenizer adds 2 to each of the two texts, which come off the 200.
    assert numpy.mean([count == 198 for count in counts]) > 0.9


@given(rate=st.floats(0.1, 1e4), burstiness=st.floats(0.05, 50), count=st.integers(1, 50), seed=st.integers(0, 9))
def test_departures_rise_to_the_rate_asked_for(rate: float, burstiness: float, count: int, seed: int) -> None:
    due = Traffic(rate, burstiness, seed=seed).departures(count)
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] == pytest.approx(count / rate)


def test_burstiness_is_the_shape_of_the_intervals() -> None:
    def variation(burstiness: float) -> float:
        intervals = numpy.diff(Traffic(10, burstiness).departures(4000))
        return float(numpy.std(intervals) / numpy.mean(intervals))

    assert variation(1.0) == pytest.approx(1, abs=0.05)
    assert variation(0.25) == pytest.approx(2, abs=0.2)
    assert variation(100) == pytest.approx(0.1, abs=0.01)
    assert variation(float("inf")) == pytest.approx(0, abs=1e-6)

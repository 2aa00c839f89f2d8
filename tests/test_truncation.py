"""What does not fit, against sentence-transformers: scores of pairs and texts of lengths around the limit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer

from rerankd import InvalidRequest, Reranker, Truncation
from rerankd.core import Side
from tests import checkpoints, texts
from tests.references import Pair

LENGTHS = (0, 1, 4, 9, 20, 26, 33, 45, 70, 200)
"""In words. A pair of the shorter ones fits in LIMITS, one text of the longer ones does not."""
LIMITS = (64, 81)
PAIRS: list[Pair] = [(texts.words(a, 10 + a), texts.words(b, 400 + b)) for a, b in product(LENGTHS, LENGTHS)]
ISSUE: list[Pair] = [(texts.words(700, 1), texts.words(30, seed)) for seed in range(2, 8)]
ISSUE += [(texts.words(300, 8), texts.words(400, seed)) for seed in range(9, 12)]
"""At the model's own limit: a long query against short documents, and two texts of which neither has half."""

MAKERS: dict[str, Callable[..., Path]] = {
    "bert": checkpoints.bert,
    "roberta": checkpoints.roberta,
    "xlmr": checkpoints.xlmr,
}


class Served(NamedTuple):
    folder: Path
    side: Side
    """The checkpoint's own."""


def with_side(folder: Path, side: Side, where: str) -> Path:
    """Have the tokenizer cut `side`, as told by a file."""
    if where == "tokenizer_config.json":
        settings = json.loads((folder / where).read_text())
        (folder / where).write_text(json.dumps(settings | {"truncation_side": side}))
    else:
        tokenizer = Tokenizer.from_file(str(folder / where))
        tokenizer.enable_truncation(128, direction=side)
        tokenizer.save(str(folder / where))
    return folder


@pytest.fixture(
    scope="module", params=product(MAKERS, ("none", "tokenizer_config.json", "tokenizer.json")), ids="-".join
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    maker, where = request.param
    folder = MAKERS[maker](tmp_path_factory.mktemp(maker))
    return Served(folder, "right") if where == "none" else Served(with_side(folder, "left", where), "left")


def reference(served: Served, limit: int | None, side: Side | None, pairs: Sequence[Pair]) -> list[float]:
    """`predict`, with the tokenizer's side where `side` is None."""
    model = CrossEncoder(str(served.folder), device="cpu", max_length=limit)
    assert model.tokenizer.truncation_side == served.side
    if side is not None:
        model.tokenizer.truncation_side = side
    return [float(score) for score in model.predict([list(pair) for pair in pairs], batch_size=8)]


@pytest.mark.parametrize("limit", LIMITS)
def test_pairs_are_cut_as_sentence_transformers_cuts_them(served: Served, limit: int) -> None:
    right = reference(served, limit, "right", PAIRS)
    left = reference(served, limit, "left", PAIRS)
    assert max(right) - min(right) > 0.2
    assert max(abs(a - b) for a, b in zip(left, right, strict=True)) > 1e-2
    own = right if served.side == "right" else left
    assert reference(served, limit, None, PAIRS[::7]) == pytest.approx(own[::7], abs=1e-6)
    with Reranker(served.folder, device="cpu", dtype="float32", max_model_len=limit) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(own, abs=1e-5)
        # Whatever the checkpoint says, a request may choose.
        for side, expected in (("left", left), ("right", right)):
            truncation = Truncation(side=side)  # type: ignore[arg-type]
            assert reranker.score(PAIRS, truncation=truncation) == pytest.approx(expected, abs=1e-5)
    with Reranker(served.folder, device="cpu", dtype="float32") as reranker:
        limited = Truncation(max_tokens=limit)
        assert reranker.score(PAIRS, truncation=limited) == pytest.approx(own, abs=1e-5)


def test_and_at_the_models_own_limit(served: Served) -> None:
    expected = reference(served, 512, None, ISSUE)
    with Reranker(served.folder, device="cpu", dtype="float32", max_model_len=512) as reranker:
        assert reranker.score(ISSUE) == pytest.approx(expected, abs=1e-5)
        result = reranker.rerank(ISSUE[0][0], [document for _, document in ISSUE[:6]])
    assert (result.query_truncated, result.truncated) == (True, ())
    order = sorted(range(6), key=lambda index: -expected[index])
    assert [one.index for one in result.documents] == order
    assert len({round(score, 6) for score in expected[:6]}) == 6


@pytest.fixture(scope="module", params=["right", "left"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    prompts = {"query": "query of words: ", "document": "passage: "}
    folder = tmp_path_factory.mktemp("embedder")
    checkpoints.xlmr_embedder(folder, prompts=prompts, pooling="mean", max_seq_length=64)
    side: Side = request.param
    return Served(with_side(folder, side, "tokenizer_config.json"), side)


def cosines(folder: Path, side: Side, pairs: Sequence[Pair]) -> list[float]:
    model = SentenceTransformer(str(folder), device="cpu")
    model.tokenizer.truncation_side = side
    queries = model.encode_query([query for query, _ in pairs], normalize_embeddings=True)
    return [float(q @ d) for q, d in zip(queries, model.encode_document([d for _, d in pairs]), strict=True)]


def test_texts_are_cut_as_sentence_transformers_cuts_them(embedder: Served) -> None:
    expected = cosines(embedder.folder, embedder.side, PAIRS)
    assert max(expected) - min(expected) > 0.1
    with Reranker(embedder.folder, device="cpu", dtype="float32") as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_the_real_minilm_is_too(minilm_path: Path, tmp_path: Path) -> None:
    long: list[Pair] = [
        (texts.words(a, a), texts.words(b, b)) for a in (3, 150, 260, 500) for b in (5, 190, 210, 230, 700)
    ]
    for side in ("left", "right"):
        folder = with_side(Path(shutil.copytree(minilm_path, tmp_path / side)), side, "tokenizer_config.json")  # type: ignore[arg-type]
        expected = cosines(folder, side, long)  # type: ignore[arg-type]
        with Reranker(folder, device="cpu", dtype="float32") as reranker:
            assert reranker.score(long) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "embedder"])
def test_no_text_is_cut_to_nothing(family: str, tmp_path: Path) -> None:
    folder = MAKERS.get(family, checkpoints.xlmr_embedder)(tmp_path)
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        least = {"bert": 5, "embedder": 3}[family]
        for side in ("left", "right"):
            asked: dict[str, Any] = {"documents": ["a b", "c d", ""], "query": "e f"}
            result = reranker.rerank(**asked, truncation=Truncation(max_tokens=least, side=side))  # type: ignore[arg-type]
            assert result.truncated == (0, 1)
            assert len({one.score for one in result.documents}) == 3
            with pytest.raises(InvalidRequest, match=rf"truncation.max_tokens: .*allow at least {least}"):
                reranker.rerank(**asked, truncation=Truncation(max_tokens=least - 1, side=side))  # type: ignore[arg-type]

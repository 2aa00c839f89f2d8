"""Long documents by their best chunk: against each chunk scored as a document of its own, in every family."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import transformers
from sentence_transformers import SentenceTransformer

from rerankd import Chunk, Chunking, InvalidRequest, Reranker, RerankRequest, RerankResult, Truncation
from rerankd.core import Image, Side, Text, text_content
from tests import checkpoints, references, texts
from tests.conftest import MakeCheckpoint
from tests.media.patterns import pattern

QUERY = "What is the capital of China?"
LONG = [texts.words(200, 1), "法国的首都是巴黎。" * 40, texts.words(90, 2) + " </s> <|im_end|>"]
DOCUMENTS = ["short", LONG[0], LONG[1], "a b", LONG[2], ""]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}Relevant? "
MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen3": (checkpoints.qwen3, {}),
    "qwen3-jinja": (checkpoints.qwen3, {}),
    "qwen3-vl": (checkpoints.qwen3_vl, {}),
    "xlmr": (checkpoints.xlmr, {}),
    "embedder": (checkpoints.xlmr_embedder, {"prompts": {"query": "query: ", "document": "passage: "}}),
}
LIMITS = Truncation(max_tokens_per_doc=40)


@pytest.fixture(scope="module", params=[*MAKERS, "minilm"])
def reranker(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint, minilm_path: Path) -> Iterator[Reranker]:
    maker, options = MAKERS.get(request.param, (None, {}))
    folder = minilm_path if maker is None else make_checkpoint(maker, **options)
    template = TEMPLATE if request.param.endswith("jinja") else None
    with Reranker(folder, device="cpu", dtype="float32", chat_template=template, max_batch_tokens=300) as loaded:
        yield loaded


def chunks_of(
    reranker: Reranker, chunking: Chunking, documents: Sequence[str] = DOCUMENTS
) -> tuple[RerankResult, list[tuple[Chunk, ...]]]:
    """The answer, and all chunks of each document."""
    contents = tuple(map(text_content, documents))
    submitted = reranker.submit(RerankRequest(text_content(QUERY), contents, truncation=LIMITS, chunking=chunking))
    return reranker.collect(submitted), list(submitted.group.chunks)


def test_a_document_scores_as_its_best_chunk_does_alone(reranker: Reranker) -> None:
    result, chunks = chunks_of(reranker, Chunking(overlap_tokens=6))
    assert [one.score for one in result.documents] == sorted((one.score for one in result.documents), reverse=True)
    assert (result.truncated, result.scored) == ((), len(DOCUMENTS))
    assert [len(own) > 2 for own in chunks] == [document in LONG for document in DOCUMENTS]
    winners = []
    for one, own in zip(result.in_request_order(), chunks, strict=True):
        pieces = [chunk.text for chunk in own] or [DOCUMENTS[one.index]]
        alone = reranker.score([(QUERY, piece) for piece in pieces])
        assert one.score == pytest.approx(max(alone), abs=1e-5)
        assert one.chunks == len(pieces)
        if own:
            assert one.best_chunk is not None
            assert one.best_chunk == own[one.best_chunk.index]
            assert alone[one.best_chunk.index] == pytest.approx(max(alone), abs=1e-6)
            winners.append(one.best_chunk.index)
        else:
            assert one.best_chunk is None
    assert max(winners) > 0


def test_every_token_computed_is_counted(reranker: Reranker) -> None:
    result, chunks = chunks_of(reranker, Chunking(overlap_tokens=6))
    for one, own in zip(result.in_request_order(), chunks, strict=True):
        pieces = [chunk.text for chunk in own] or [DOCUMENTS[one.index]]
        alone = reranker.rerank(QUERY, pieces)
        assert one.prompt_tokens == alone.prompt_tokens
    assert result.prompt_tokens == sum(one.prompt_tokens for one in result.documents)
    assert result.computed_tokens <= result.prompt_tokens


def test_what_lies_beyond_the_chunks_is_reported(reranker: Reranker) -> None:
    long = tuple(index for index, document in enumerate(DOCUMENTS) if document in LONG)
    for most in (1, 2):
        result, chunks = chunks_of(reranker, Chunking(most, 3))
        assert result.truncated == long
        assert {len(own) for own in chunks} == {0, most}
    with pytest.raises(InvalidRequest, match="more chunks"):
        reranker.rerank(
            QUERY, DOCUMENTS, truncation=replace(LIMITS, allowed=False), chunking=Chunking(max_chunks_per_doc=2)
        )


def test_every_face_takes_it(reranker: Reranker) -> None:
    asked: dict[str, Any] = {"truncation": LIMITS, "chunking": Chunking(5, 4)}
    expected = [one.score for one in reranker.rerank(QUERY, DOCUMENTS, **asked).in_request_order()]
    pairs = [(QUERY, document) for document in DOCUMENTS]

    async def both() -> tuple[RerankResult, list[float]]:
        return await reranker.arerank(QUERY, DOCUMENTS, **asked), await reranker.ascore(pairs, **asked)

    ranked, scored = asyncio.run(both())
    assert [one.score for one in ranked.in_request_order()] == pytest.approx(expected, abs=1e-5)
    assert scored == pytest.approx(expected, abs=1e-5)
    assert reranker.score(pairs, **asked) == pytest.approx(expected, abs=1e-5)
    plain = reranker.score(pairs, truncation=LIMITS)
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 1e-4
    best = reranker.rerank(QUERY, DOCUMENTS, top_n=2, **asked)
    assert [one.score for one in best.documents] == pytest.approx(sorted(expected, reverse=True)[:2], abs=1e-5)
    # Progress is in documents, whatever their chunks.
    told: list[int] = []
    contents = tuple(map(text_content, DOCUMENTS))
    request = RerankRequest(text_content(QUERY), contents, truncation=LIMITS, chunking=Chunking(5, 4))
    reranker.collect(reranker.submit(request, told.append))
    assert sum(told) == len(DOCUMENTS)
    assert 0 not in told
    assert len(told) > 1


def embedder_scores(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[float]:
    model = SentenceTransformer(str(folder), device="cpu")
    queries = model.encode_query([query for query, _ in pairs], normalize_embeddings=True)
    return [float(q @ d) for q, d in zip(queries, model.encode_document([d for _, d in pairs]), strict=True)]


@pytest.mark.parametrize(
    ("maker", "reference"),
    [
        (checkpoints.qwen3, references.qwen3_scores),
        (checkpoints.xlmr, references.cross_encoder_scores),
        (checkpoints.bert, references.cross_encoder_scores),
        (None, embedder_scores),
    ],
)
def test_scores_are_the_best_of_the_references(
    make_checkpoint: MakeCheckpoint,
    minilm_path: Path,
    maker: Callable[..., Path] | None,
    reference: Callable[[Path, Sequence[tuple[str, str]]], list[float]],
) -> None:
    folder = minilm_path if maker is None else make_checkpoint(maker)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Words of one token: a chunk that begins inside a word may take more tokens than it does in the text.
    every = dict.fromkeys(texts.words(3000, 5).split())
    document = " ".join([word for word in every if len(tokenizer.tokenize(f"a {word}")) == 2] * 10)
    offsets = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    total = len(offsets)
    # Four runs of 50 tokens, 10 of them shared, from each side. One ends where its last token does and begins where the
    # token before it ended.
    starts = [40 * k for k in range(4)]
    runs: dict[Side, list[tuple[int, int]]] = {
        "right": [(start, start + 50) for start in starts],
        "left": [(total - start - 50, total - start) for start in reversed(starts)],
    }
    pieces = {
        side: [document[offsets[a - 1][1] if a else 0 : offsets[b - 1][1]] for a, b in runs[side]] for side in runs
    }
    scores = iter(reference(folder, [(QUERY, piece) for side in runs for piece in pieces[side]]))
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        for side in runs:
            alone = [next(scores) for _ in starts]
            limits = Truncation(max_tokens_per_doc=50, side=side)
            chunked = reranker.rerank(QUERY, [document], truncation=limits, chunking=Chunking(4, 10)).documents[0]
            assert chunked.truncated
            assert chunked.score == pytest.approx(max(alone), abs=1e-5)
            assert chunked.best_chunk is not None
            assert chunked.best_chunk.index == max(range(4), key=alone.__getitem__)
            assert chunked.best_chunk.text == pieces[side][chunked.best_chunk.index]
            # Cutting reads the first chunk, or the last.
            cut = reranker.rerank(QUERY, [document], truncation=limits).documents[0]
            assert cut.score == pytest.approx(alone[0 if side == "right" else -1], abs=1e-5)


def test_a_document_with_an_image_is_cut(qwen3_vl_checkpoint: Path) -> None:
    image = Image(PIL.Image.fromarray(pattern(96, 64, 1)))
    seen, text = [image, Text(texts.words(200, 1))], texts.words(200, 1)
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as reranker:
        asked: dict[str, Any] = {"truncation": Truncation(max_tokens=200)}
        plain = reranker.rerank(QUERY, [seen, text], **asked).in_request_order()
        result = reranker.rerank(QUERY, [seen, text], chunking=Chunking(), **asked)
        split = result.in_request_order()
        assert (split[0].best_chunk, split[0].chunks) == (None, 1)
        assert split[0].score == pytest.approx(plain[0].score, abs=1e-5)
        assert result.truncated == (0,)
        assert split[1].chunks > 2
        # An image in the query is in every chunk's prompt.
        pictured = reranker.rerank([image, Text("what")], [text], chunking=Chunking(), **asked).documents[0]
        assert pictured.best_chunk is not None
        alone = reranker.rerank([image, Text("what")], [pictured.best_chunk.text]).documents[0]
        assert pictured.score == pytest.approx(alone.score, abs=1e-5)


def test_a_bad_document_is_left_out_by_its_own_place(reranker: Reranker) -> None:
    asked: dict[str, Any] = {"truncation": replace(LIMITS, allowed=False), "chunking": Chunking(2)}
    result = reranker.rerank(QUERY, DOCUMENTS, on_error="skip", **asked)
    long = [index for index, document in enumerate(DOCUMENTS) if document in LONG]
    assert sorted(result.failed) == long
    assert all(error.field == f"documents[{index}]" for index, error in result.failed.items())
    assert {one.index for one in result.documents} == set(range(len(DOCUMENTS))) - set(long)

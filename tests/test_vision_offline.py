"""Images and videos from Python: the forms they come in, what is skipped, and vLLM's `LLM.score`."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rerankd import LLM, InvalidRequest, Reranker
from rerankd.contents import to_content
from rerankd.core import Content, Image, Text, Video
from tests.media.films import MOV, film
from tests.media.patterns import pattern

RED, BLUE = (PIL.Image.fromarray(pattern(96, 64, seed)) for seed in (1, 2))
FRAMES = [RED, BLUE, RED, BLUE]


@pytest.fixture(scope="module")
def reranker(qwen3_vl_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    RED.save(folder / "red.png")
    BLUE.save(folder / "blue.png")
    (folder / "film.mov").write_bytes(film(MOV, 20, rate=4, crf="0"))
    return folder


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ({}, ()),
        ({"text": None, "image": [], "video": None}, ()),
        ({"text": ["a", "b"]}, (Text("a"), Text("b"))),
        (
            {"text": "t", "image": "i.png", "video": "v.mp4", "fps": 2, "max_frames": 8},
            (Video("v.mp4", 2, 8), Image("i.png"), Text("t")),
        ),
        ({"image": ["a.png", RED], "text": "t"}, (Image("a.png"), Image(RED), Text("t"))),
        ({"video": ["a.png", "b.png"]}, (Video(["a.png", "b.png"]),)),
        ({"video": ["https://x/a.JPG?b=c.mp4", "b"]}, (Video(["https://x/a.JPG?b=c.mp4", "b"]),)),
        ({"video": ["a.mp4", "b.webm"]}, (Video("a.mp4"), Video("b.webm"))),
        ({"video": [["a", "b"], "c"]}, (Video(["a", "b"]), Video("c"))),
        ({"video": FRAMES}, (Video(FRAMES),)),
        ("s", (Text("s"),)),
        ([Text("s"), Image("i")], (Text("s"), Image("i"))),
    ],
)
def test_what_a_content_may_be_given_as(given: Any, content: Content) -> None:
    assert to_content(given, "query") == content


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"text": "a", "images": "b"}, "'images'"),
        ({"content": []}, "'content'"),
        ({"text": 3}, "int"),
        ({"video": "a", "fps": "fast"}, "'fast'"),
        ({"video": "a", "max_frames": 2.5}, "2.5"),
        (["a"], "list"),
        (None, "NoneType"),
        (RED, "Image"),
    ],
)
def test_anything_else_is_refused_by_name(given: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_content(given, "documents[4]")
    assert caught.value.field == "documents[4]"
    assert told in caught.value.problem


def test_every_source_of_a_picture_scores_the_same(reranker: Reranker, files: Path) -> None:
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    path = files / "red.png"
    sources: list[Any] = [RED, path, str(path), path.as_uri()]
    sources.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    documents = [{"image": source} for source in sources]
    scores = [one.score for one in reranker.rerank("q", [*documents, {"image": BLUE}]).in_request_order()]
    assert scores[:5] == pytest.approx([scores[0]] * 5, abs=1e-6)
    assert abs(scores[5] - scores[0]) > 1e-4


def test_fps_and_max_frames_choose_the_frames(reranker: Reranker, files: Path) -> None:
    film = str(files / "film.mov")
    documents = [{"video": film}, {"video": film, "fps": 2}, {"video": film, "fps": 2, "max_frames": 4}]
    group = reranker.submit(request := _request("q", documents)).group
    steps = [suffix.visuals[0].grid[0] for suffix in group.suffixes]
    assert steps == [2, 5, 2]
    assert request.documents[1] == (Video(film, 2, None),)


def _request(query: Any, documents: list[Any], **more: Any) -> Any:
    from rerankd.core import RerankRequest

    contents = tuple(to_content(document, "d") for document in documents)
    return RerankRequest(to_content(query, "query"), contents, **more)


def test_score_groups_pairs_by_the_querys_picture(reranker: Reranker) -> None:
    pairs: list[Any] = [({"image": RED}, "a"), ({"image": BLUE}, "a"), ({"image": RED}, {"image": BLUE}), ("q", "a")]
    alone = [reranker.rerank(query, [document]).documents[0].score for query, document in pairs]
    assert reranker.score(pairs) == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 5) for score in alone}) == 4


def test_a_bad_document_fails_the_request_by_default(reranker: Reranker, files: Path) -> None:
    documents = ["a", [Text("see"), Image(str(files / "missing.png"))]]
    with pytest.raises(InvalidRequest) as caught:
        reranker.rerank("q", documents)
    assert caught.value.field == "documents[1].content[1]"
    assert "missing.png" in caught.value.problem


def test_bad_documents_can_be_skipped(reranker: Reranker, files: Path) -> None:
    huge = {"image": [PIL.Image.fromarray(pattern(1400, 1300, 3))] * 140}  # over the model's own limit on tokens
    (files / "broken.png").write_bytes((files / "red.png").read_bytes()[:300])
    documents: list[Any] = [
        "a",
        {"image": str(files / "broken.png")},
        {"image": BLUE},
        huge,
        {"video": str(files / "red.png"), "text": "b"},
        "c",
    ]
    good = [documents[i] for i in (0, 2, 5)]
    expected = [one.score for one in reranker.rerank({"image": RED}, good).in_request_order()]
    for result in (
        reranker.rerank({"image": RED}, documents, on_error="skip"),
        asyncio.run(reranker.arerank({"image": RED}, documents, on_error="skip")),
    ):
        ranked = result.in_request_order()
        assert [one.index for one in ranked] == [0, 2, 5]
        assert [one.score for one in ranked] == pytest.approx(expected, abs=1e-6)
        assert {i: error.field for i, error in result.failed.items()} == {
            1: "documents[1].content[0]",
            3: "documents[3]",
            4: "documents[4].content[0]",
        }
        assert "truncated" in result.failed[1].problem
        assert "tokens" in result.failed[3].problem


def test_a_bad_query_fails_though_documents_may_be_skipped(reranker: Reranker) -> None:
    with pytest.raises(InvalidRequest, match=r"^query.content\[0\]: "):
        reranker.rerank({"image": "/missing.png"}, ["a"], on_error="skip")
    result = reranker.rerank("q", [{"image": "/missing.png"}], on_error="skip")
    assert (result.documents, list(result.failed)) == ((), [0])


def test_a_text_model_says_which_would_see(qwen3_checkpoint: Path, xlmr_checkpoint: Path) -> None:
    for folder in (qwen3_checkpoint, xlmr_checkpoint):
        with Reranker(folder, device="cpu") as reads:
            with pytest.raises(InvalidRequest, match=r"^documents\[1\]: .*Qwen3-VL-Reranker"):
                reads.rerank("q", ["a", {"image": RED}])
            skipped = reads.rerank("q", ["a", {"image": RED}], on_error="skip")
        assert [one.index for one in skipped.documents] == [0]
        assert list(skipped.failed) == [1]


def test_llm_takes_processor_kwargs(qwen3_vl_checkpoint: Path, files: Path) -> None:
    document = {"content": [{"type": "image_url", "image_url": {"url": (files / "red.png").as_uri()}}]}
    lengths = []
    for kwargs in (None, {"min_pixels": 64 * 1024}, {"size": {"shortest_edge": 64 * 1024}}):
        with LLM(model=str(qwen3_vl_checkpoint), mm_processor_kwargs=kwargs) as llm:
            (output,) = llm.score("q", document, use_tqdm=False)
        lengths.append(len(output.prompt_token_ids))
    assert lengths[1] == lengths[2] > lengths[0] + 50  # 96 x 64 are 6 tokens
    for bad in ({"num_crops": 3}, {"max_pixels": -1}):
        with pytest.raises(
            ValueError, match=r"mm_processor_kwargs(\.max_pixels: must be greater than 0|: .*num_crops)"
        ):
            LLM(model=str(qwen3_vl_checkpoint), mm_processor_kwargs=bad)


def test_vllms_offline_script(qwen3_vl_checkpoint: Path, files: Path, reranker: Reranker) -> None:
    """The calls of vLLM's `vision_reranker_offline` example, with its overrides and its template."""
    template = (Path(__file__).parent / "server" / "clients" / "vllm_qwen3_vl_reranker.jinja").read_text()
    llm = LLM(
        model=str(qwen3_vl_checkpoint),
        runner="pooling",
        dtype="float32",
        max_model_len=16384,
        hf_overrides={
            "architectures": ["Qwen3VLForSequenceClassification"],
            "classifier_from_token": ["no", "yes"],
            "is_original_qwen3_reranker": True,
        },
    )
    query, document = "A woman playing with her dog on a beach at sunset.", "A woman shares a joyful moment."
    image, video = (files / "red.png").as_uri(), (files / "film.mov").as_uri()
    parts = [
        {"type": "text", "text": document},
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "video_url", "video_url": {"url": video}},
    ]
    asked: list[tuple[Any, list[Any]]] = [
        (document, [document]),
        ({"content": [parts[0]]}, [document]),
        ({"content": [parts[1]]}, [[Image(image)]]),
        ({"content": [parts[2]]}, [[Video(video)]]),
        ({"content": [parts[0], parts[1]]}, [[Text(document), Image(image)]]),
        (
            [document, {"content": [parts[0]]}, {"content": [parts[1]]}, {"content": [parts[0], parts[1]]}],
            [document, document, [Image(image)], [Text(document), Image(image)]],
        ),
    ]
    with llm:
        for given, ours in asked:
            outputs = llm.score(query, given, chat_template=template, use_tqdm=False)
            expected = [one.score for one in reranker.rerank(query, ours).in_request_order()]
            assert [output.outputs.score for output in outputs] == pytest.approx(expected, abs=1e-5)

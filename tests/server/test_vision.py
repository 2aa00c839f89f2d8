"""Images and videos over HTTP: the documented clients, what is reached and what is not, what is skipped."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests

from rerankd import Reranker
from rerankd.core import Image, Text, Video
from rerankd.server.settings import Settings
from tests.media.films import MP4, film
from tests.media.hostile import large_png, limit_memory, long_gif, resident, write_padded_film
from tests.media.patterns import pattern
from tests.media.servers import Server, ok, serving
from tests.server.fakes import running
from tests.server.launched import LAUNCH_SERVER, SERVE, Launched, launched
from tests.server.test_reference_clients import CLIENTS, literals, run_client


def jpeg(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pattern(width, height, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


FILES = {
    "/beach_dog.jpeg": jpeg(200, 150, 1),
    "/reference_image.jpeg": jpeg(120, 160, 2),
    "/similar_image.jpeg": jpeg(160, 120, 3),
    "/draw.mp4": film(MP4, 40),
}


@pytest.fixture(scope="module")
def pictures() -> Iterator[Server]:
    with serving() as server:
        server.answers |= {target: ok(data) for target, data in FILES.items()}
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shown/` may be read from by `opened`; what lies beside it may not."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "shown").mkdir()
    for place in (folder / "shown", folder):
        (place / "dog.jpeg").write_bytes(FILES["/beach_dog.jpeg"])
    return folder


@pytest.fixture(scope="module")
def closed(qwen3_vl_checkpoint: Path) -> Iterator[Launched]:
    """A server as it starts without a flag."""
    with launched(SERVE, str(qwen3_vl_checkpoint), "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def opened(qwen3_vl_checkpoint: Path, folder: Path) -> Iterator[Launched]:
    """vLLM Ascend's command, with private addresses and a folder opened."""
    overrides = (
        '{"architectures": ["Qwen3VLForSequenceClassification"],"classifier_from_token": ["no", "yes"],'
        '"is_original_qwen3_reranker": true}'
    )
    arguments = ["--runner", "pooling", "--max-model-len", "4096", "--hf_overrides", overrides, "--dtype", "float32"]
    arguments += ["--chat-template", str(CLIENTS / "vllm_qwen3_vl_reranker.jinja"), "--allow-private-media"]
    arguments += ["--allowed-local-media-path", str(folder / "shown"), "--media-timeout", "5"]
    with launched(SERVE, *arguments, str(qwen3_vl_checkpoint)) as server:
        yield server


@pytest.fixture(scope="module")
def sglang(qwen3_vl_checkpoint: Path) -> Iterator[Launched]:
    """SGLang's command, with private addresses opened."""
    arguments = ["--trust-remote-code", "--disable-radix-cache", "--host", "0.0.0.0", "--allow-private-media"]
    template = str(CLIENTS / "sglang_qwen3_vl_reranker.jinja")
    arguments += ["--dtype", "float32", "--chat-template", template]
    with launched(LAUNCH_SERVER, "--model-path", str(qwen3_vl_checkpoint), *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def reranker(qwen3_vl_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as loaded:
        yield loaded


def run(name: str, server: Launched, pictures: Server, tmp_path: Path) -> str:
    """What a client prints whose pictures lie on a local server."""
    script = (CLIENTS / f"{name}.txt").read_text().replace("{pictures}", pictures.url(""))
    (tmp_path / f"{name}.txt").write_text(script)
    return run_client(str(tmp_path / name), server, "Qwen3-VL-Reranker-2B")


def shown(content: Any) -> Any:
    """A content of a client's payload with its pictures at hand."""
    parts = [content] if isinstance(content, str) else content
    return [
        Text(part)
        if isinstance(part, str)
        else Text(part["text"])
        if part["type"] == "text"
        else Image(PIL.Image.open(io.BytesIO(FILES[part["image_url"]["url"].removeprefix("{pictures}")])))
        for part in parts
    ]


@pytest.mark.parametrize("name", ["sglang_qwen3_vl_image.py", "sglang_qwen3_vl_query.py"])
def test_sglangs_clients(name: str, sglang: Launched, pictures: Server, reranker: Reranker, tmp_path: Path) -> None:
    payload: Any = literals(name)["payload"]
    documents = [shown(document) for document in payload["documents"]]
    ranked = reranker.rerank(shown(payload["query"]), documents, payload["instruct"]).documents
    printed = run(name, sglang, pictures, tmp_path)
    found = re.findall(r"Index: (\d+), Score: (\d\.\d{4})\n", printed)
    assert [int(index) for index, _ in found] == [one.index for one in ranked]
    assert [float(score) for _, score in found] == pytest.approx([one.score for one in ranked], abs=1.1e-4)


def test_vllms_online_example(opened: Launched, pictures: Server, reranker: Reranker, tmp_path: Path) -> None:
    sent = literals("vllm_vision_online.py")
    text = Text(str(sent["document"]))
    image = Image(PIL.Image.open(io.BytesIO(FILES["/beach_dog.jpeg"])))
    (tmp_path / "draw.mp4").write_bytes(FILES["/draw.mp4"])
    asked = [
        [[text]],
        [[text]],
        [[image]],
        [[image]],
        [[Video(str(tmp_path / "draw.mp4"))]],
        [[text, image]],
        [[text], [text], [image], [text, image]],
    ]
    answers = [json.loads(line) for line in run("vllm_vision_online.py", opened, pictures, tmp_path).splitlines()]
    assert len(answers) == len(asked)
    for answer, documents in zip(answers, asked, strict=True):
        result = reranker.rerank(str(sent["query"]), documents)
        scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
        assert scores == pytest.approx({one.index: one.score for one in result.documents}, abs=1e-5)
        assert answer["usage"]["prompt_tokens"] == result.prompt_tokens
    assert answers[2]["results"][0]["document"]["multi_modal"] == [
        {"type": "image_url", "image_url": {"url": pictures.url("/beach_dog.jpeg")}}
    ]


def post(server: Launched, *documents: Any, path: str = "/v1/rerank", **body: Any) -> requests.Response:
    return requests.post(
        f"{server.url}{path}", json={"query": "a dog", "documents": ["text", *documents], **body}, timeout=60
    )


def image(url: str, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": url, **more}}]


def refused(response: requests.Response) -> str:
    """The message of an error that blames the second part of the second document."""
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "documents[1].content[1]")
    return str(error["message"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_no_private_address_is_fetched_by_default(closed: Launched, pictures: Server, host: str, kind: str) -> None:
    before = len(pictures.seen)
    url = pictures.url("/beach_dog.jpeg", host)
    message = refused(post(closed, [{"type": "text", "text": "see"}, {"type": kind, kind: {"url": url}}]))
    assert "address" in message or "host" in message, message
    assert len(pictures.seen) == before


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x", "http://[::1]/x"])
def test_metadata_and_internal_addresses_are_not_fetched(closed: Launched, url: str) -> None:
    assert "private" in (message := refused(post(closed, image(url))))
    assert "--allow-private-media" in message


def test_no_local_file_is_read_by_default(closed: Launched, folder: Path) -> None:
    there, missing = folder / "dog.jpeg", folder / "none.jpeg"
    for spell in (Path.as_uri, str):
        messages = [refused(post(closed, image(spell(path)))).replace(path.name, "") for path in (there, missing)]
        assert messages[0] == messages[1], "whether a file exists is not told"
    assert "ftp" in refused(post(closed, image("ftp://example.com/a.png")))


def test_a_folder_that_is_opened_is_all_that_is_read(opened: Launched, folder: Path) -> None:
    assert post(opened, image((folder / "shown" / "dog.jpeg").as_uri())).status_code == 200
    (folder / "shown" / "link.jpeg").symlink_to(folder / "dog.jpeg")
    outside = [(folder / "dog.jpeg").as_uri(), f"file://{folder}/shown/../dog.jpeg"]
    outside += [(folder / "shown" / "link.jpeg").as_uri(), str(folder / "shown" / "dog.jpeg")]
    for url in outside:
        refused(post(opened, image(url)))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("data:image/png;base64,aGVsbG8=", "not an image"),
        ("/missing.jpeg", "404"),
        ("/broken.jpeg", "truncated"),
        ("/draw.mp4", "video"),
    ],
)
def test_bad_media_name_document_and_part(opened: Launched, pictures: Server, url: str, told: str) -> None:
    pictures.answers["/broken.jpeg"] = ok(FILES["/beach_dog.jpeg"][:2000])
    assert told in refused(post(opened, image(url if url.startswith("data:") else pictures.url(url))))


def test_a_bad_query_is_named(opened: Launched) -> None:
    response = post(opened, query=image("data:,x"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "query.content[1]")


def test_bad_documents_are_skipped_on_request(opened: Launched, pictures: Server) -> None:
    good, bad = image(pictures.url("/beach_dog.jpeg")), image(pictures.url("/missing.jpeg"))
    whole, skipped = post(opened, good), post(opened, bad, good, on_error="skip")
    (failed,) = skipped.json()["failed"]
    assert (failed["index"], failed["param"]) == (1, "documents[1].content[1]")
    assert "404" in failed["message"]
    assert "documents[1].content[1]" in skipped.headers["X-Rerankd-Failed"]
    scores = {one["index"]: one["relevance_score"] for one in skipped.json()["results"]}
    expected = {{0: 0, 1: 2}[one["index"]]: one["relevance_score"] for one in whole.json()["results"]}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert "failed" not in whole.json()
    assert "X-Rerankd-Failed" not in whole.headers
    in_sglangs = post(opened, bad, good, path="/sglang/v1/rerank", on_error="skip")
    assert [one["index"] for one in in_sglangs.json()] == [one["index"] for one in skipped.json()["results"]]
    assert "404" in in_sglangs.headers["X-Rerankd-Failed"]


def test_pixels_are_limited_by_part_by_request_and_by_server(
    opened: Launched, pictures: Server, qwen3_vl_checkpoint: Path
) -> None:
    def tokens(server: Launched, given: list[dict[str, Any]], **body: Any) -> int:
        return int(post(server, given, **body).json()["usage"]["prompt_tokens"])

    url = pictures.url("/beach_dog.jpeg")
    base = tokens(opened, image(url))  # 200 x 150 are 6 x 5 tokens
    kwargs = {"mm_processor_kwargs": {"max_pixels": 16 * 1024}}
    assert tokens(opened, image(url, max_pixels=16 * 1024)) == base - 30 + 12
    assert tokens(opened, image(url), **kwargs) == base - 30 + 12
    assert tokens(opened, image(url, max_pixels=64 * 1024), **kwargs) == base
    assert "max_pixels" in refused(post(opened, image(url, min_pixels=9000, max_pixels=8000)))
    arguments = ["--dtype", "float32", "--allow-private-media", "--min-pixels", "4096"]
    arguments += ["--mm-processor-kwargs", '{"max_pixels": 16384}']
    with launched(SERVE, str(qwen3_vl_checkpoint), *arguments) as narrow:
        assert tokens(narrow, image(url)) == base - 30 + 12
        assert tokens(narrow, image(url, max_pixels=64 * 1024)) == base


def video(url: str, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "see"}, {"type": "video_url", "video_url": {"url": url, **more}}]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_media_that_are_large_once_they_are_read(opened: Launched, folder: Path) -> None:
    """The server answers within its memory, and has that back.

    With 8 GB it could decode as many at a time as it has threads for: it has less, and fewer are sent.
    """
    shown = folder / "shown"
    (shown / "large.png").write_bytes(large_png())
    (shown / "long.gif").write_bytes(long_gif(8000))
    write_padded_film(shown / "padded.mp4", 250 << 20)
    assert post(opened, image((shown / "dog.jpeg").as_uri())).status_code == 200
    before = resident(str(opened.process.pid))
    assert limit_memory(opened.process.pid, 1500 << 20) < 8 << 30
    # In another size it is another picture, which is read again.
    pictures = [image((shown / "large.png").as_uri(), max_pixels=tokens * 1024) for tokens in (8, 9, 10)]
    assert post(opened, *pictures).status_code == 200
    films = [video((shown / "padded.mp4").as_uri(), max_frames=frames) for frames in (4, 6, 8, 10)]
    assert post(opened, *films).status_code == 200
    assert "pixels have to be decoded" in refused(post(opened, video((shown / "long.gif").as_uri())))
    assert resident(str(opened.process.pid), peak=True) - before < 1200 << 20
    assert resident(str(opened.process.pid)) - before < 250 << 20
    assert requests.get(f"{opened.url}/health", timeout=60).status_code == 200


def test_vllms_list_of_jpegs(opened: Launched, reranker: Reranker) -> None:
    files = [jpeg(96, 64, seed) for seed in range(5)]
    encoded = ",".join(base64.b64encode(file).decode() for file in files)
    response = post(opened, video(f"data:video/jpeg;base64,{encoded}"))
    pictures = [PIL.Image.open(io.BytesIO(file)) for file in files]
    result = reranker.rerank("a dog", ["text", [Text("see"), Video(pictures)]])
    scores = {one["index"]: one["relevance_score"] for one in response.json()["results"]}
    assert scores == pytest.approx({one.index: one.score for one in result.documents}, abs=1e-5)


def test_an_avif_picture_is_an_image_and_no_video(opened: Launched, reranker: Reranker) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pattern(96, 64)).save(buffer, "AVIF")
    uri = "data:image/avif;base64," + base64.b64encode(buffer.getvalue()).decode()
    scores = {one["index"]: one["relevance_score"] for one in post(opened, image(uri)).json()["results"]}
    result = reranker.rerank("a dog", ["text", [Text("see"), Image(PIL.Image.open(buffer))]])
    assert scores == pytest.approx({one.index: one.score for one in result.documents}, abs=1e-5)
    assert "send it as an image part" in refused(post(opened, video(uri)))


def test_a_text_model_says_which_would_see(xlmr_checkpoint: Path) -> None:
    with Reranker(xlmr_checkpoint, device="cpu") as reads, running(reads, Settings(names=("m",))) as url:
        body = {"query": "q", "documents": ["a", image("http://127.0.0.1:9/a.png")]}
        response = requests.post(f"{url}/v1/rerank", json=body, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "documents[1]")
    assert "Qwen3-VL-Reranker" in error["message"]

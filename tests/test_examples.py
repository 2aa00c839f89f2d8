"""The scripts of examples/, run as their docstrings say, against scores by independent means."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from runpy import run_path
from typing import Any, TypeAlias

import PIL.Image
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from rerankd import Reranker
from tests import references, vision
from tests.checkpoints import NO, YES
from tests.server.launched import SERVE, Launched, environment, launched

EXAMPLES = Path(__file__).parents[1] / "examples"
STEP = 0.01
"""bfloat16 against float32, of cosines and probabilities."""
PRINTED = 6e-5
"""float32 against float32, of scores with four digits."""

Cosines: TypeAlias = Callable[[str, Sequence[str]], list[float]]


def run(name: str, *arguments: str) -> str:
    """What an example prints; it must exit with 0. Its commands are those of this interpreter's environment."""
    program = "bash" if name.endswith(".sh") else sys.executable
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [program, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(PATH=path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def constants(name: str) -> dict[str, Any]:
    """An example's names, without running its main()."""
    return run_path(str(EXAMPLES / name))


def float32(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What an example prints where its models compute in float32, whose scores can be told apart."""
    main = constants(name)["main"]
    main.__globals__["Reranker"] = partial(Reranker, device="cpu", dtype="float32")
    capsys.readouterr()
    main(*arguments)
    return capsys.readouterr().out


def scored(printed: str) -> list[tuple[float, str]]:
    """Lines of a score, two blanks and a text."""
    return [(float(score), text) for score, text in re.findall(r"^([01]\.\d{4})  (.*)$", printed, re.MULTILINE)]


def best_first(scores: Sequence[float], texts: Sequence[str]) -> list[tuple[float, str]]:
    return sorted(zip(scores, texts, strict=True), reverse=True)


def assert_alike(found: Sequence[tuple[float, str]], expected: Sequence[tuple[float, str]], step: float = STEP) -> None:
    assert [text for _, text in found] == [text for _, text in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=step)


@pytest.fixture(scope="module")
def cosines(minilm_path: Path) -> Cosines:
    """Scores of the embedded model by sentence-transformers."""
    model = SentenceTransformer(str(minilm_path), device="cpu")

    def of(query: str, documents: Sequence[str]) -> list[float]:
        vectors = model.encode([query, *documents], normalize_embeddings=True, convert_to_tensor=True)
        return [float(score) for score in vectors[1:] @ vectors[0]]

    return of


@pytest.fixture(scope="module")
def server() -> Iterator[Launched]:
    """The embedded model, as `make serve` starts it."""
    with launched(SERVE) as started:
        yield started


def test_every_example_is_run_here_and_listed() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert names == set(re.findall(r"run\(\s*\"([\w.]+)\"", Path(__file__).read_text()))
    assert names == set(re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE))


def test_offline(minilm_path: Path, cosines: Cosines) -> None:
    example = constants("offline_rerank.py")
    scores = cosines(example["QUERY"], example["DOCUMENTS"])
    printed = run("offline_rerank.py", str(minilm_path))
    assert_alike(scored(printed), best_first(scores, example["DOCUMENTS"])[:3])
    panda, bread, pairs = printed.splitlines()[3:]
    assert panda == "what is panda? -> The giant panda is a bear species endemic to China."
    assert bread == "how is bread made? -> Bread is made from flour, water and yeast."
    assert [float(score) for score in pairs.split()] == pytest.approx(scores, abs=STEP)


def test_two_apis(server: Launched, cosines: Cosines) -> None:
    example = constants("http_two_apis.py")
    expected = best_first(cosines(example["QUERY"], example["DOCUMENTS"]), example["DOCUMENTS"])[:2]
    lines = run("http_two_apis.py", server.url).splitlines()
    for api in ("vLLM    ", "Cohere  "):
        assert_alike(scored("\n".join(line.removeprefix(api) for line in lines if line.startswith(api))), expected)
    assert len(lines) == 4


def test_two_apis_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(SERVE, "--api-key", "secret") as locked:
        monkeypatch.setenv("RERANKD_API_KEY", "secret")
        assert len(run("http_two_apis.py", locked.url).splitlines()) == 4


def test_async_client(server: Launched, cosines: Cosines) -> None:
    example = constants("async_client.py")
    expected = []
    for query in example["QUERIES"]:
        score, best = best_first(cosines(query, example["DOCUMENTS"]), example["DOCUMENTS"])[0]
        expected.append((score, f"{query} -> {best}"))
    assert_alike(scored(run("async_client.py", server.url)), expected)


def test_async_client_asks_a_busy_server_again() -> None:
    """Four refusals are fewer than the attempts of one query, whichever queries they meet."""
    refusals = [429, 503, 429, 503]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"results": [{"index": 1, "relevance_score": 0.25}]}).encode()
            try:
                status = refusals.pop()
            except IndexError:
                status = 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        printed = run("async_client.py", f"http://127.0.0.1:{busy.server_port}")
        busy.shutdown()
    assert not refusals
    assert printed.count("0.2500  ") == len(constants("async_client.py")["QUERIES"])


def test_files(minilm_path: Path, cosines: Cosines, tmp_path: Path) -> None:
    data = EXAMPLES / "data"
    texts = {}
    for line in (data / "corpus.jsonl").read_text().splitlines():
        entry = json.loads(line)
        texts[entry["id"]] = " ".join(filter(None, (entry.get("title"), entry["text"])))
    candidates: dict[str, list[str]] = {}
    for line in (data / "first-stage.trec").read_text().splitlines():
        candidates.setdefault(line.split()[0], []).append(line.split()[2])
    printed = run("rank_files.sh", str(minilm_path), str(tmp_path))
    ranked = [line.split() for line in (tmp_path / "reranked.trec").read_text().splitlines()]
    for line in (data / "queries.tsv").read_text().splitlines():
        query, text = line.split("\t")
        expected = best_first(cosines(text, [texts[one] for one in candidates[query]]), candidates[query])
        assert_alike([(float(row[4]), row[2]) for row in ranked if row[0] == query], expected)
    assert re.search(r"^first-stage.trec +0\.5000 ", printed, re.MULTILINE)
    assert re.search(r"^reranked.trec +0\.7540 \+0\.2540 ", printed, re.MULTILINE)


def picture_scores(folder: Path, documents: Sequence[Sequence[str | PIL.Image.Image]]) -> list[float]:
    """Scores of the example's query by transformers."""
    processor, model, query = vision.processor(folder), vision.load(folder), constants("images.py")["QUERY"]
    return [vision.score(model, vision.inputs(processor, [query], document)) for document in documents]


def test_images(qwen3_vl_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, example = qwen3_vl_checkpoint, constants("images.py")
    texts, red, blue = example["TEXTS"], example["drawn"]("red"), example["drawn"]("blue")
    expected = best_first(
        picture_scores(folder, [[texts[0]], [texts[1]], [red], [blue], [red, texts[0]]]),
        [*texts, "a drawn red circle", "a drawn blue circle", f"a drawn red circle, and: {texts[0]}"],
    )
    assert_alike(scored(float32("images.py", capsys, str(folder))), expected, PRINTED)
    assert {text for _, text in scored(run("images.py", str(folder)))} == {text for _, text in expected}

    stripes = PIL.Image.new("RGB", (320, 160), "green")
    stripes.paste("yellow", (0, 0, 160, 160))
    path = str(tmp_path / "stripes.png")
    stripes.save(path)
    expected = best_first(
        picture_scores(folder, [[texts[0]], [texts[1]], [stripes], [stripes, texts[0]]]),
        [*texts, path, f"{path}, and: {texts[0]}"],
    )
    assert_alike(scored(float32("images.py", capsys, str(folder), path)), expected, PRINTED)


@torch.inference_mode()
def test_custom_template(qwen3_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, example = qwen3_checkpoint, constants("custom_template.py")
    query, documents = example["QUERY"], example["DOCUMENTS"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = []
    for document in documents:
        prompt = (
            "<|im_start|>system\nJudge whether the Document is written in the language that the Query names. "
            f'The answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Query>: {query}\n'
            f"<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        own.append(model(**inputs, logits_to_keep=1).logits[0, -1][[NO, YES]].softmax(0)[1].item())
    built_in = references.qwen3_scores(folder, [(query, document) for document in documents])
    assert own != pytest.approx(built_in, abs=STEP)

    printed = float32("custom_template.py", capsys, str(folder))
    first, second = printed.removeprefix("built-in\n").split("custom_template.jinja\n")
    assert_alike(scored(first), best_first(built_in, documents), PRINTED)
    assert_alike(scored(second), best_first(own, documents), PRINTED)
    assert len(run("custom_template.py", str(folder)).splitlines()) == len(printed.splitlines())


@pytest.mark.parametrize("name", ["async_client", "custom_template", "http_two_apis", "images", "offline_rerank"])
def test_an_example_with_arguments_says_what_it_takes(name: str) -> None:
    said = run(f"{name}.py", "--help")
    assert said.startswith(f"usage: {name}.py [-h] [")

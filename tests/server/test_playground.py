"""The playground in a real browser: texts, long texts, pictures, errors, keys, narrow screens."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from rerankd import Reranker
from rerankd.cli.hosting import Named, open_pool
from rerankd.options import LoadOptions
from rerankd.server.settings import Residence, Settings
from tests.server.fakes import MODEL, FakeReranker, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUERY = "what is a panda"
DOCUMENTS = ["hi", "The giant panda is a bear.", "It's \"quoted\" \\ and odd: ${x} ``` '''", "Bread rises."]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def serve(make_checkpoint: Callable[..., Path]) -> Iterator[Callable[..., tuple[str, Reranker]]]:
    """Servers of checkpoints, each started once."""
    started: dict[str, tuple[str, Reranker]] = {}
    with ExitStack() as stack:

        def start(checkpoint: Path, **settings: Any) -> tuple[str, Reranker]:
            key = f"{checkpoint} {settings}"
            if key not in started:
                reranker = stack.enter_context(Reranker(str(checkpoint), dtype="float32"))
                url = stack.enter_context(running(reranker, Settings(names=("my/model",), **settings)))
                started[key] = url, reranker
            return started[key]

        yield start


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end nothing may have gone wrong in it that nobody expected."""
    pages: list[Page] = []
    problems: list[str] = []

    def go(url: str, **options: Any) -> Page:
        page = browser.new_page(**options)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda message: problems.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(url)
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert problems == []


def fill(page: Page, query: str, documents: list[str]) -> None:
    page.get_by_label("JSON").check(force=True)
    page.get_by_role("textbox", name="Query").fill(query)
    page.get_by_role("textbox", name="Documents").fill(json.dumps(documents))


def rank(page: Page) -> None:
    page.get_by_role("button", name="Rank").click()
    expect(page.get_by_role("button", name="Rank")).to_be_enabled()


def rows(page: Page) -> list[dict[str, str]]:
    found = page.locator("ol.results > li")
    return [
        {
            "head": one.locator(".head").inner_text(),
            "score": one.locator(".score").inner_text(),
            "text": one.locator(".text").first.text_content() or "" if one.locator(".text").count() else "",
            "width": one.locator(".bar i").evaluate("node => node.style.width"),
        }
        for one in found.all()
    ]


def test_texts_are_ranked_and_shown(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    url, reranker = serve(bert_checkpoint)
    page = visit(f"{url}/")
    page.get_by_role("link", name="/playground").click()
    expect(page.locator("#facts")).to_contain_text("my/model")
    for fact in ("cross-encoder", "cpu", "float32", "512 tokens", "10,000 documents"):
        expect(page.locator("#facts")).to_contain_text(fact)
    assert page.title().startswith("my/model")
    fill(page, QUERY, DOCUMENTS)
    expect(page.locator("#count")).to_have_text("4 documents")
    rank(page)
    expected = reranker.rerank(QUERY, DOCUMENTS)
    found = rows(page)
    assert [one["text"] for one in found] == [DOCUMENTS[document.index] for document in expected.documents]
    for place, (one, document) in enumerate(zip(found, expected.documents, strict=True)):
        assert float(one["score"]) == pytest.approx(document.score, abs=2e-4)
        assert one["head"].startswith(f"{place + 1}.")
        arrow = "▲" if document.index > place else "▼" if document.index < place else "="
        assert f"{arrow} was {document.index + 1}" in one["head"]
        assert f"{document.prompt_tokens} tokens" in one["head"]
        assert float(one["width"].rstrip("%")) == pytest.approx(100 * document.score, abs=0.6)
    expect(page.locator("#figures")).to_contain_text(f"{expected.prompt_tokens} tokens")
    for stage in ("tokenise", "queue", "model"):
        expect(page.locator("#legend")).to_contain_text(stage)
    best = expected.documents[0]
    expect(page.get_by_role("status")).to_contain_text("4 documents ranked in")
    expect(page.get_by_role("status")).to_contain_text(f"number {best.index + 1}")


def test_one_of_several_models_is_chosen(
    visit: Callable[..., Page], bert_checkpoint: Path, qwen3_checkpoint: Path
) -> None:
    folders = {"first": str(bert_checkpoint), "second": str(qwen3_checkpoint)}
    chosen = [Named((name,), LoadOptions(folder, dtype="float32")) for name, folder in folders.items()]
    with closing(open_pool(chosen, Residence())) as pool, running(pool, Settings(names=("first",))) as url:
        page = visit(f"{url}/playground")
        for model in pool.models[::-1]:
            (name,) = model.names
            page.get_by_label("Model", exact=True).select_option(label=name)
            expect(page.locator("#facts")).to_contain_text(name)
            expect(page.locator("#instructionbox")).to_be_visible(visible=model.info.takes_instruction)
            fill(page, QUERY, DOCUMENTS)
            rank(page)
            with Reranker(folders[name], dtype="float32") as alone:
                expected = alone.rerank(QUERY, DOCUMENTS)
            assert [float(row["score"]) for row in rows(page)] == pytest.approx(
                [document.score for document in expected.documents], abs=2e-4
            )
        page.get_by_label("API", exact=True).select_option("tei")
        expect(page.locator("#snippet")).to_contain_text('"model": "first"')


@pytest.mark.parametrize(
    ("form", "text", "wanted"),
    [
        ("One a line", "one\n\n  two \r\nthree", ["one", "two", "three"]),
        ("Blank lines between", "one\nmore\n\n \ntwo", ["one\nmore", "two"]),
        (
            "JSON",
            '["one", {"text": "two", "title": "T"}, [{"type": "text", "text": "three"}]]',
            ["one", "T two", "three"],
        ),
        ("JSON", '{"documents": ["one", {"content": "two"}]}', ["one", "two"]),
    ],
)
def test_documents_in_every_form(
    form: str, text: str, wanted: list[str],
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path,
) -> None:  # fmt: skip
    page = visit(f"{serve(bert_checkpoint)[0]}/playground")
    page.get_by_label(form).check(force=True)
    page.get_by_role("textbox", name="Documents").fill(text)
    rank(page)
    assert {one["text"] for one in rows(page)} == set(wanted)


def test_files_become_documents(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path, tmp_path: Path
) -> None:
    page = visit(f"{serve(bert_checkpoint)[0]}/playground")
    expect(page.locator("#facts")).to_contain_text("my/model")
    (tmp_path / "a.txt").write_text("from a\nfile\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n"two"\n')
    (tmp_path / "c.json").write_text('["three"]')
    page.get_by_role("textbox", name="Documents").fill("typed")
    page.set_input_files("#documentpick", [tmp_path / name for name in ("a.txt", "b.jsonl", "c.json")])
    expect(page.locator("#count")).to_have_text("5 documents")
    page.get_by_role("button", name="Remove c.json").click()
    rank(page)
    assert {one["text"] for one in rows(page)} == {"typed", "from a\nfile", "one", "two"}
    (tmp_path / "d.json").write_text("[oops")
    page.set_input_files("#documentpick", tmp_path / "d.json")
    expect(page.get_by_role("alert")).to_contain_text("d.json is not JSON")
    page.set_input_files("#documentpick", {"name": "e.png", "mimeType": "image/png", "buffer": b"x"})
    expect(page.get_by_role("alert")).to_contain_text("e.png: this model reads text only")


def test_what_is_cut_is_struck_out(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    url, reranker = serve(bert_checkpoint)
    page = visit(f"{url}/playground")
    words = [f"word {number} \U0001f43c" for number in range(400)]
    fill(page, QUERY, ["short", " ".join(words)])
    rank(page)
    long = page.locator("ol.results > li", has_text="cut to fit")
    expect(long).to_have_count(1)
    struck = long.locator(".text .cut").text_content() or ""
    assert struck.strip().endswith("word 399 \U0001f43c")
    kept = " ".join(words)[: -len(struck)]
    # What is left is what fits: with it alone nothing is cut, and the score is the same; with a little more it is cut.
    whole = reranker.rerank(QUERY, [" ".join(words)]).documents[0]
    alone = reranker.rerank(QUERY, [kept]).documents[0]
    assert not alone.truncated
    assert alone.score == pytest.approx(whole.score, abs=1e-5)
    assert reranker.rerank(QUERY, [f"{kept} {struck[:20]}"]).documents[0].truncated
    expect(long.locator(".cut")).to_be_in_viewport(ratio=0.01)
    show = long.get_by_role("button", name="Show all")
    show.click()
    expect(long.get_by_role("button", name="Show less")).to_have_attribute("aria-expanded", "true")
    expect(page.locator("ol.results > li", has_text="short").locator(".tag")).to_have_count(0)


def test_the_best_chunk_is_marked(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    from rerankd import Chunking

    url, reranker = serve(bert_checkpoint)
    page = visit(f"{url}/playground")
    text = " ".join(f"\U0001f43c word {number}" for number in range(700))
    fill(page, QUERY, ["short", text])
    page.get_by_text("Options").click()
    page.get_by_label("Long documents").select_option("chunks")
    rank(page)
    (expected,) = (one for one in reranker.rerank(QUERY, ["short", text], chunking=Chunking()).documents if one.index)
    assert expected.best_chunk is not None
    assert expected.chunks > 2
    long = page.locator("ol.results > li", has_text="best chunk")
    expect(long).to_contain_text(f"best chunk {expected.best_chunk.index + 1} of {expected.chunks}")
    assert long.locator("mark").text_content() == expected.best_chunk.text
    page.set_viewport_size({"width": 390, "height": 800})
    rank(page)
    where = "node => node.querySelector('mark').getBoundingClientRect().top - node.getBoundingClientRect().top"
    assert 0 <= long.locator(".text").evaluate(where) < 144, "the mark is not among the lines that are shown"
    assert long.locator(".text").text_content() == text


def test_options_are_sent(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], qwen3_checkpoint: Path
) -> None:
    url, reranker = serve(qwen3_checkpoint)
    page = visit(f"{url}/playground")
    expect(page.get_by_label("Instruction")).to_be_visible()
    fill(page, QUERY, DOCUMENTS)
    page.get_by_label("Instruction").fill("Find bears")
    page.get_by_text("Options").click()
    page.get_by_label("Best documents").fill("2")
    page.get_by_label("Values").select_option("logits")
    rank(page)
    expected = reranker.rerank(QUERY, DOCUMENTS, "Find bears", 2, activation=False)
    assert [one["text"] for one in rows(page)] == [DOCUMENTS[document.index] for document in expected.documents]
    for one, document in zip(rows(page), expected.documents, strict=True):
        assert float(one["score"]) == pytest.approx(document.score, abs=2e-3)
    expect(page.locator("#figures")).to_contain_text("2 of 4 documents")


def png(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (64, 48), colour).save(stream, "PNG")
    return stream.getvalue()


DROP = """([zone, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0)), dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, {type}));
  const node = document.getElementById(zone), options = {dataTransfer, bubbles: true, cancelable: true};
  for (const kind of ["dragover", "drop"]) node.dispatchEvent(new DragEvent(kind, options));
}"""


def test_pictures_are_dropped_and_shown(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], qwen3_vl_checkpoint: Path
) -> None:
    url, reranker = serve(qwen3_vl_checkpoint)
    page = visit(f"{url}/playground")
    expect(page.get_by_role("button", name="Add a picture or video")).to_be_visible()
    fill(page, QUERY, ["a text"])
    pictures = {name: png(name) for name in ("red", "green", "blue")}
    for name, data in pictures.items():
        zone = "querydrop" if name == "red" else "documentdrop"
        page.evaluate(DROP, [zone, f"{name}.png", "image/png", base64.b64encode(data).decode()])
        expect(page.get_by_role("button", name=f"Remove {name}.png")).to_be_visible()
    expect(page.locator("#count")).to_have_text("3 documents")
    rank(page)
    urls = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in pictures.items()}
    documents: list[Any] = ["a text", {"image": urls["green"]}, {"image": urls["blue"]}]
    expected = reranker.rerank({"text": QUERY, "image": urls["red"]}, documents)
    found = rows(page)
    assert [float(one["score"]) for one in found] == pytest.approx([one.score for one in expected.documents], abs=2e-4)
    shown = page.locator("ol.results img").evaluate_all("all => all.map((one) => [one.src, one.naturalWidth])")
    assert shown == [[documents[one.index]["image"], 64] for one in expected.documents if one.index]
    # The code that is shown is short, and the code that is copied is whole.
    expect(page.locator("#snippet")).to_contain_text("…")
    page.get_by_label("API", exact=True).select_option("tei")
    expect(page.locator("#lost")).to_contain_text("pictures and videos")


def test_errors_are_the_servers_own(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    page = visit(f"{serve(bert_checkpoint)[0]}/playground")
    fill(page, "  ", DOCUMENTS)
    rank(page)
    expect(page.get_by_role("alert")).to_have_text("The query is empty.")
    fill(page, QUERY, [])
    rank(page)
    expect(page.get_by_role("alert")).to_have_text("There are no documents.")
    page.get_by_role("textbox", name="Documents").fill("[1")
    rank(page)
    expect(page.get_by_role("alert")).to_contain_text("The documents are not JSON")
    page.get_by_role("textbox", name="Documents").fill('[[{"type": "image_url", "image_url": {"url": "data:,"}}]]')
    rank(page)
    expect(page.get_by_role("alert")).to_contain_text("documents[0]")
    assert rows(page) == []
    fill(page, QUERY, DOCUMENTS)
    rank(page)
    expect(page.locator("#problem")).to_be_hidden()
    assert len(rows(page)) == 4
    page.set_viewport_size({"width": 390, "height": 500})
    fill(page, "", DOCUMENTS)
    rank(page)
    expect(page.get_by_role("alert")).to_be_in_viewport()
    # Nothing that a document says is taken for a part of the page.
    fill(page, QUERY, ["<img src=x onerror=alert(1)><b>bold</b>"])
    rank(page)
    assert rows(page)[0]["text"] == "<img src=x onerror=alert(1)><b>bold</b>"
    expect(page.locator("ol.results b")).to_have_count(0)


def test_a_server_with_a_key(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    url, _ = serve(bert_checkpoint, keys=("secret",))
    assert requests.get(f"{url}/playground/info", timeout=30).status_code == 401
    assert "my/model" not in requests.get(f"{url}/playground", timeout=30).text
    page = visit(f"{url}/playground")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know this key")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("my/model")
    fill(page, QUERY, DOCUMENTS)
    rank(page)
    assert len(rows(page)) == 4
    expect(page.locator("#snippet")).to_contain_text("$RERANKD_API_KEY")
    expect(page.locator("#snippet")).not_to_contain_text("secret")


DIALECTS = ("vllm", "sglang", "cohere", "tei", "infinity", "voyage", "jina", "nvidia", "weaviate", "elastic", "kserve")


def answer(data: Any) -> list[tuple[int, float]]:
    if "rankings" in data:
        return [(one["index"], 1 / (1 + math.exp(-one["logit"]))) for one in data["rankings"]]
    if "outputs" in data:
        return sorted(enumerate(data["outputs"][0]["data"]), key=lambda one: -one[1])[:3]
    if "scores" in data:  # of all documents, in the order of the request
        return sorted(enumerate(one["score"] for one in data["scores"]), key=lambda one: -one[1])[:3]
    found = data if isinstance(data, list) else data.get("results", data.get("data"))
    return [(one["index"], one.get("relevance_score", one.get("score"))) for one in found]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_code_makes_the_same_call(
    dialect: str, visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    url, reranker = serve(bert_checkpoint)
    page = visit(f"{url}/playground")
    fill(page, QUERY, DOCUMENTS)
    page.get_by_text("Options").click()
    page.get_by_label("Best documents").fill("3")
    rank(page)
    page.get_by_label("API", exact=True).select_option(dialect)
    expected = [(one.index, one.score) for one in reranker.rerank(QUERY, DOCUMENTS, top_n=3).documents]

    def check(data: Any) -> None:
        found = answer(data)
        assert [index for index, _ in found] == [index for index, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)

    def code(language: str) -> str:
        page.get_by_label(language, exact=True).check(force=True)
        return page.locator("#snippet").inner_text()

    curl = subprocess.run(["sh", "-c", f"{code('curl')} -sS"], capture_output=True, text=True, check=True, timeout=60)
    check(json.loads(curl.stdout))
    python = code("Python").replace("print(response.json())", "print(json.dumps(response.json()))")
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=True, timeout=60)
    check(json.loads(done.stdout))
    script = code("JavaScript").replace("console.log(await response.json())", "return await response.json()")
    check(page.evaluate(f"async () => {{ {script} }}"))
    if dialect in ("sglang", "vllm"):
        assert page.locator("#lost").inner_text() == ""


def test_keyboard_and_names(
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    page = visit(f"{serve(bert_checkpoint)[0]}/playground")
    expect(page.locator("#facts")).to_contain_text("my/model")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.get_by_role("textbox", name="Query").focus()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("5 documents ranked")
    page.get_by_label("One a line").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Blank lines between")).to_be_checked()
    expect(page.locator("#count")).to_have_text("1 document")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
        .filter((one) => one.type !== "file" && one.offsetParent)
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
        .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("html").get_attribute("lang") == "en"


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const found = parse(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const says = (node) => [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.offsetParent || node.closest(".reader") || !says(node)) continue;
    const found = [light(parse(getComputedStyle(node).color)), light(back(node))].sort((x, y) => y - x);
    const ratio = (found[0] + 0.05) / (found[1] + 0.05);
    if (ratio < 4.5) poor.push(`${node.className || node.tagName}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_narrow_screens_and_dark_ones(
    width: int, scheme: Any,
    visit: Callable[..., Page], serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path,
) -> None:  # fmt: skip
    page = visit(
        f"{serve(bert_checkpoint)[0]}/playground", viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    fill(page, QUERY, [*DOCUMENTS, "x" * 300, "word " * 900])
    rank(page)
    assert len(rows(page)) == 6
    expect(page.locator("#summary")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(", "))) > 384) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


def test_it_can_be_left_out() -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), playground=False)) as url:
        for path in ("/", "/playground", "/playground/info"):
            assert requests.get(url + path, timeout=30).status_code == 404
    with running(FakeReranker(), Settings(names=(MODEL,), keys=("k",), protect_all=True)) as url:
        assert requests.get(f"{url}/playground", timeout=30).status_code == 401


def test_the_page_needs_nothing_from_elsewhere() -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), docs=False)) as url:
        response = requests.get(f"{url}/playground", timeout=30)
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "http://" not in response.text.replace("http://www.w3.org", "")
        assert "https://" not in response.text
        front = requests.get(f"{url}/", timeout=30).text
        assert 'href="playground"' in front
        assert 'href="docs"' not in front
        assert requests.head(f"{url}/playground", timeout=30).status_code == 200


def test_below_a_proxys_prefix(visit: Callable[..., Page]) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), root_path="/below")) as url:
        page = visit(f"{url}/below/playground")
        expect(page.locator("#facts")).to_contain_text(MODEL)
        rank(page)
        assert len(rows(page)) == 5
        expect(page.locator("#snippet")).to_contain_text("/below/vllm/v1/rerank")


def test_stage_times_are_told_of_every_answer(
    serve: Callable[..., tuple[str, Reranker]], bert_checkpoint: Path
) -> None:
    url, _ = serve(bert_checkpoint)
    response = requests.post(f"{url}/v1/rerank", json={"query": "a", "documents": ["b"]}, timeout=30)
    names = [one.partition(";dur=")[0] for one in response.headers["Server-Timing"].split(", ")]
    assert names == ["tokenise", "queue", "model"]
    assert all(float(one.partition(";dur=")[2]) >= 0 for one in response.headers["Server-Timing"].split(", "))

"""Texts of many megabytes: what they take until they are tokens, and the limit on their characters."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd import InvalidRequest, Reranker
from rerankd.core import Labels, RerankRequest, Text, text_content
from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.models.recipes.recipe import Recipe
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts import tokenizer as tokenizer_module
from tests.labels import label_request
from tests.prompts.conftest import refusal, request

LIMITED = """
import base64, resource, sys
from pathlib import Path
from random import Random
from rerankd.core import RerankRequest, text_content
from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.prompts import load_prompts

recipe = {recipe.name: recipe for recipe in (BI_ENCODER, CROSS_ENCODER)}[sys.argv[2]]
prompts = load_prompts(Path(sys.argv[1]), recipe=recipe, positions=512, max_characters=10**8)
generator = Random(1)
long = {
    "numbers": "".join(f"{generator.randrange(1000)}," for _ in range(5_200)) * 1000,
    "letters": base64.b64encode(generator.randbytes(15_000)).decode() * 1000,
    "marks": "!?.,;:-(" * 2_500_000,
    "chinese": "法国的首都是巴黎。" * 2_300_000,
}
# What modules and tokenizers take is not the texts'.
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 300_000_000, held + 300_000_000))

def build(documents, query="q"):
    return prompts.build(RerankRequest(text_content(query), tuple(map(text_content, documents))))

for name, text in long.items():
    if name in sys.argv[3]:
        assert len(text) > 2e7 - 1
        cut, short = build([text]), build([text[:8000]])
        assert cut == short and cut.truncated == (True,), name
        assert build(["d"], text).query_truncated
        print(name)
"""
"""Texts of 20 MB, read by a process that may have 300 MB more than it starts with."""


@pytest.mark.parametrize(
    ("folder", "recipe", "kinds"),
    [
        ("minilm_path", "cross-encoder", "numbers letters marks chinese"),
        ("minilm_path", "bi-encoder", "numbers marks"),
        ("roberta_folder", "cross-encoder", "numbers letters chinese"),
    ],
)
def test_20_megabytes_take_little_memory(folder: str, recipe: str, kinds: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    done = subprocess.run([sys.executable, "-c", LIMITED, path, recipe, kinds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == kinds.split()


def test_texts_are_read_slice_by_slice(qwen3: LoadedPrompts, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["word " * n for n in (3, 50, 0, 400, 1, 1, 20, 5000, 2, 0)]
    together: list[list[str]] = []

    class Spy:
        """The library's tokenizer, and what it was given at a time."""

        def encode_batch_fast(self, given: list[str], add_special_tokens: bool) -> Any:
            together.append(list(given))
            return qwen3.tokenizer.tokenizer.encode_batch_fast(given, add_special_tokens=add_special_tokens)

    expected = [qwen3.tokenizer.ids([text])[0] for text in texts]
    loaded = replace(qwen3.tokenizer, tokenizer=Spy())  # type: ignore[arg-type]
    for most in (1, 7, 100, 2000, 10**6):
        monkeypatch.setattr(tokenizer_module, "SLICE_CHARACTERS", most)
        together.clear()
        assert loaded.ids(texts) == expected
        assert [text for some in together for text in some] == texts
        assert all(len(some) == 1 or sum(map(len, some)) <= most for some in together)
        assert len(together) == 1 or most < sum(map(len, texts))


def test_long_texts_are_read_one_after_another_and_short_ones_meanwhile(
    qwen3: LoadedPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes up to 600 bytes a character, and the tokenizer ends the process where it gets none."""
    monkeypatch.setattr(tokenizer_module, "LONG_CHARACTERS", 5000)
    reading: list[int] = []
    entered, go = threading.Semaphore(0), threading.Event()

    class Gated:
        """The library's tokenizer, which waits before it reads a long text."""

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> Any:
            if len(texts[0]) > 5000:
                reading.append(len(texts))
                entered.release()
                assert go.wait(30)
                reading.pop()
            return qwen3.tokenizer.tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

        encode_batch_fast = encode_batch

    loaded = replace(qwen3.tokenizer, tokenizer=Gated())  # type: ignore[arg-type]
    long = "word" * 2000
    with ThreadPoolExecutor() as pool:
        read = [
            pool.submit(loaded.ids, [long]),
            pool.submit(loaded.offsets, long),
            pool.submit(loaded.tokens, long, True),
        ]
        assert entered.acquire(timeout=30)
        assert loaded.ids(["word " * 900]) == qwen3.tokenizer.ids(["word " * 900])
        assert not entered.acquire(timeout=0.3)
        assert len(reading) == 1
        go.set()
        assert len(read[0].result(30)[0]) == len(read[1].result(30)) == len(read[2].result(30)) == 2000


@pytest.mark.parametrize("recipe", [None, CROSS_ENCODER, BI_ENCODER])
def test_a_text_of_too_many_characters_is_refused(
    recipe: Recipe | None, qwen3: LoadedPrompts, minilm_path: Path
) -> None:
    prompts = qwen3 if recipe is None else load_prompts(minilm_path, recipe=recipe, positions=512)
    prompts = replace(prompts, max_characters=100)
    long = "a" * 101
    for asked, field in (
        (request("q", ["d", long]), "documents[1]"),
        (request(long, ["d"]), "query"),
        (request("q", ["d"], long), "instruction"),
        (RerankRequest(text_content("q"), ((Text("a" * 50), Text("a" * 51)),)), "documents[0]"),
    ):
        error = refusal(prompts, asked)
        assert error.field == field
        assert error.problem.startswith("has 101 characters, and 100 are allowed in one text (--max-request-characters")
    assert prompts.build(request("a" * 100, ["b" * 100] * 3)).suffixes


def test_in_every_face(qwen3_checkpoint: Path) -> None:
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32", max_characters=1000) as reranker:
        long = "a b " * 251
        with pytest.raises(InvalidRequest, match=r"documents\[1\]: has 1004 characters"):
            reranker.rerank("q", ["d", long])
        result = reranker.rerank("q", ["d", long, "e"], on_error="skip")
        assert list(result.failed) == [1]
        assert len(result.documents) == 2
        with pytest.raises(InvalidRequest, match="text: has 1004 characters"):
            reranker.tokenize(long)
        assert len(reranker.tokenize("a b")) == 2
        with pytest.raises(InvalidRequest, match=r"documents\[1\]: has 1004 characters"):
            reranker.submit(label_request(("a", long), Labels((1, 2))))
    two_million = pytest.raises(InvalidRequest, match="2000001 characters, and 2000000 are allowed")
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker, two_million:
        reranker.rerank("q", ["a" * 2_000_001])

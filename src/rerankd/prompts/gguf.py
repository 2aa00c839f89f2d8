"""A GGUF file as a model folder: its configuration and its tokenizer, in the files that a folder has.

Reference: llama.cpp's converters, which write a tokenizer's tokens, kinds, scores and merges.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from rerankd.core import ModelError
from rerankd.models.checkpoint.gguf.config import config_of
from rerankd.models.checkpoint.gguf.file import GgufFile
from rerankd.models.checkpoint.json_files import shown
from rerankd.prompts.unigram import SPACE, pair_template, unigram

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Kinds of tokens."""
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's and Qwen3's tokenizers split a text before they merge bytes."""


def unfold(path: Path) -> Path:
    """A folder with the configuration and the tokenizer of a GGUF file. The folder is deleted when the program ends.

    Raises ModelError for a file that cannot be read, and for a model that is not served.
    """
    file = GgufFile(path)
    config = config_of(file)
    folder = Path(tempfile.mkdtemp(prefix="rerankd-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(file, folder)
    return folder


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write tokenizer.json or vocab.txt, tokenizer_config.json and the chat template. ModelError for another kind."""
    kind = file.get("tokenizer.ggml.model", str)
    settings: dict[str, Any] = {}
    if kind == "bert":
        settings |= _write_words(file, folder)
    else:
        if kind == "t5":
            tokenizer = _unigram(file)
        elif kind == "gpt2" and file.get("tokenizer.ggml.pre", str) == "qwen2":
            tokenizer = _bytes(file)
        else:
            pre = file.get("tokenizer.ggml.pre", str, "default")
            raise ModelError(
                f"{file.path} has a tokenizer of the kind {shown(kind)} ({shown(pre)}), which is not supported."
            )
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template := file.get("tokenizer.chat_template", str, ""):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokens(file: GgufFile) -> tuple[list[str], list[int]]:
    """The tokens and their kinds."""
    tokens, kinds = file.list_of("tokenizer.ggml.tokens", str), file.list_of("tokenizer.ggml.token_type", int)
    if not tokens or len(kinds) != len(tokens):
        raise ModelError(f"{file.path} has {len(tokens)} tokens and {len(kinds)} kinds of them.")
    return tokens, kinds


def _special(file: GgufFile, tokens: list[str], name: str, default: int | None = None) -> tuple[str, int]:
    """A special token by the name of its entry."""
    number = file.get(f"tokenizer.ggml.{name}_token_id", int, default)
    if not 0 <= number < len(tokens):
        raise ModelError(f"{file.path}: `tokenizer.ggml.{name}_token_id` is {number}, of {len(tokens)} tokens.")
    return tokens[number], number


def _write_words(file: GgufFile, folder: Path) -> dict[str, Any]:
    """BERT's vocab.txt. llama.cpp marks the pieces that begin a word, WordPiece the pieces that continue one."""
    tokens, kinds = _tokens(file)
    words = [
        token if kind in (CONTROL, UNUSED) else token[1:] if token.startswith(SPACE) else f"##{token}"
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    # The file does not say whether the vocabulary has capitals; its tokens show it.
    cased = any("A" <= token[1:2] <= "Z" for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL)
    names = {"cls": ("bos", 101), "sep": ("seperator", 102), "unk": ("unknown", 100)}
    special = {f"{short}_token": _special(file, tokens, *entry)[0] for short, entry in names.items()}
    return {"do_lower_case": not cased, **special}


def _unigram(file: GgufFile) -> Tokenizer:
    """XLM-R's."""
    tokens, kinds = _tokens(file)
    scores = file.list_of("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise ModelError(f"{file.path} has {len(tokens)} tokens and {len(scores)} scores of them.")
    unknown = _special(file, tokens, "unknown", 3)
    charsmap = bytes(value % 256 for value in file.list_of("tokenizer.ggml.precompiled_charsmap", int))
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    tokenizer = unigram(list(zip(tokens, scores, strict=True)), unknown[1], charsmap, prefix)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    first, last = _special(file, tokens, "bos", 0), _special(file, tokens, "eos", 2)
    tokenizer.post_processor = pair_template(first, last, between=2, types=False)
    return tokenizer


def _bytes(file: GgufFile) -> Tokenizer:
    """Qwen2's and Qwen3's byte-level BPE."""
    tokens, kinds = _tokens(file)
    merges = [tuple(merge.split(" ")) for merge in file.list_of("tokenizer.ggml.merges", str)]
    words = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == NORMAL}
    try:
        tokenizer = Tokenizer(models.BPE(words, merges))  # type: ignore[arg-type]
    except Exception as error:  # The library raises bare Exception.
        raise ModelError(f"{file.path}: `tokenizer.ggml.merges` cannot be used: {error}.") from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in added])
    wrong = [token for token, _ in added if tokenizer.token_to_id(token) != tokens.index(token)]
    if wrong:
        raise ModelError(f"{file.path}: the token {shown(wrong[0])} cannot have its number.")
    return tokenizer

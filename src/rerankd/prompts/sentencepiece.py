"""Tokenizers of folders that have only a SentencePiece model: made for the library tokenizers, without transformers.

Reference: `sentencepiece_model.proto`, and the converters in transformers' `convert_slow_tokenizer.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from rerankd.core import ModelError
from rerankd.prompts.unigram import SPACE, pair_template, unigram

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of pieces."""
UNIGRAM, BPE = 1, 2
"""Types of models."""
CONVERT = (
    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), by transformers, makes a tokenizer.json of it."
)
XLM_R, DEBERTA, DECODERS, T5 = "sentencepiece.bpe.model", "spm.model", "tokenizer.model", "spiece.model"
"""The names of the files, by the families that have them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece with its score, and its type."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """A SentencePiece model.

    kind: UNIGRAM, BPE or another
    prefix: whether a text begins with a space of its own
    squeezes: whether white space at the ends, and more than one space between words, counts for nothing
    """

    pieces: Sequence[Piece]
    kind: int
    byte_fallback: bool
    charsmap: bytes
    prefix: bool
    squeezes: bool

    @classmethod
    def read(cls, path: Path) -> SentencePiece:
        """ModelError for a file that is no such model."""
        try:
            fields = list(_fields(path.read_bytes()))
            pieces = tuple(_piece(dict(_fields(value))) for number, value in fields if number == 1)
            trainer, normalizer = (dict(_fields(next((v for n, v in fields if n == part), b""))) for part in (2, 3))
        except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
            raise ModelError(
                f"{path} is not a SentencePiece model, or it is damaged: {type(error).__name__}."
            ) from None
        if not pieces or not all(isinstance(spec.get(key, 0), int) for spec, key in ((trainer, 3), (normalizer, 3))):
            raise ModelError(f"{path} is not a SentencePiece model, or it is damaged: it has no pieces.")
        charsmap = normalizer.get(2, b"")
        return cls(
            pieces=pieces,
            kind=trainer.get(3, UNIGRAM),
            byte_fallback=bool(trainer.get(35, 0)),
            charsmap=charsmap if isinstance(charsmap, bytes) else b"",
            prefix=bool(normalizer.get(3, 1)),
            squeezes=bool(normalizer.get(4, 1)),
        )

    @property
    def vocabulary(self) -> list[tuple[str, float]]:
        """The pieces and their scores."""
        return [(piece.text, piece.score) for piece in self.pieces]


def sentencepiece_tokenizer(folder: Path, settings: Mapping[str, Any], model_type: object) -> Tokenizer | None:
    """The tokenizer of a folder's SentencePiece model; None for a folder without one.

    settings: tokenizer_config.json
    model_type: the entry of config.json

    Raises ModelError for a model that cannot be converted, with what converts it.
    """
    for name, model_types, convert in (
        (XLM_R, ("xlm-roberta",), _xlm_roberta),
        (DEBERTA, ("deberta-v2",), _deberta),
        (DECODERS, ("gemma", "llama"), _decoder),
        (T5, ("t5", "mt5"), _t5),
    ):
        path = folder / name
        if not path.is_file():
            continue
        if model_type not in model_types:
            known = " or ".join(model_types)
            raise ModelError(f"{path} is read of the model types {known} only, not {model_type!r:.60}. {CONVERT}")
        return convert(path, SentencePiece.read(path), settings)
    return None


def _xlm_roberta(path: Path, model: SentencePiece, settings: Mapping[str, Any]) -> Tokenizer:
    """Four special tokens in place of the model's first three, and `<mask>` behind its last."""
    _expect(path, model, UNIGRAM)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), *model.vocabulary[3:], ("<mask>", 0.0)]
    tokenizer = unigram(pieces, 3, model.charsmap, model.prefix)
    tokenizer.add_special_tokens(special)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.post_processor = pair_template(("<s>", 0), ("</s>", 2), between=2, types=False)
    return tokenizer


def _deberta(path: Path, model: SentencePiece, settings: Mapping[str, Any]) -> Tokenizer:
    """The model's pieces, and `[MASK]` behind its last where it has none."""
    _expect(path, model, UNIGRAM)
    if settings.get("split_by_punct"):
        raise ModelError(f"{path}: `split_by_punct` of tokenizer_config.json is not supported. {CONVERT}")
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    if unknown is None or not {"[CLS]", "[SEP]"} <= set(ids):
        raise ModelError(f"{path} has no [CLS], [SEP] or unknown piece, as DeBERTa's have. {CONVERT}")
    tokenizer = unigram(model.vocabulary, unknown, model.charsmap, model.prefix)
    if settings.get("do_lower_case"):
        after = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])
    special = [piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([*special, "[MASK]"])
    tokenizer.post_processor = pair_template(("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"]), between=1, types=True)
    return tokenizer


def _t5(path: Path, model: SentencePiece, settings: Mapping[str, Any]) -> Tokenizer:
    """The model's pieces, and behind its last the marks of spans that T5 was trained with, the last mark first.

    mT5's pieces include bytes, for characters that no piece has.
    """
    _expect(path, model, UNIGRAM, model.byte_fallback)
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    if unknown is None or "</s>" not in ids:
        raise ModelError(f"{path} has no </s> or unknown piece, as T5's have. {CONVERT}")
    count = settings.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 1000:
        raise ModelError(f"{path}: `extra_ids` of tokenizer_config.json must be an integer from 0 to 1000. {CONVERT}")
    marks = [f"<extra_id_{i}>" for i in reversed(range(count))]
    pieces = [*model.vocabulary, *((mark, 0.0) for mark in marks)]
    tokenizer = unigram(pieces, unknown, model.charsmap, model.prefix, model.byte_fallback)
    tokenizer.add_special_tokens([piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)] + marks)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return tokenizer


def _decoder(path: Path, model: SentencePiece, settings: Mapping[str, Any]) -> Tokenizer:
    """Gemma's and Llama's: merges of pieces by their scores, and bytes for characters that no piece has."""
    _expect(path, model, BPE, byte_fallback=True)
    if model.charsmap or model.squeezes:
        raise ModelError(f"{path} normalises text, which is not supported for a decoder. {CONVERT}")
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    tokenizer = Tokenizer(models.BPE(ids, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    if model.prefix and settings.get("legacy") is False:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if model.prefix else spaces
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != USER_DEFINED)
            for piece in model.pieces
            if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    first = _named(settings, "bos_token", "<bos>" if "<bos>" in ids else "<s>")
    last = _named(settings, "eos_token", "<eos>" if "<eos>" in ids else "</s>")
    around = [first] * (settings.get("add_bos_token", True) is True), [last] * (settings.get("add_eos_token") is True)
    if missing := [token for token in (*around[0], *around[1]) if token not in ids]:
        raise ModelError(f"{path} has no piece {missing[0]!r}, which prompts need. {CONVERT}")
    whole = [*around[0], "$A", *around[1]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=whole, pair=[*whole, *around[0], "$B", *around[1]], special_tokens=[(t, ids[t]) for t in (first, last)]
    )
    return tokenizer


def _merges(model: SentencePiece) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, the best piece first. SentencePiece joins whichever pair makes it."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)}
    pairs = []
    for text, score in scores.items():
        for i in range(1, len(text)):
            if text[:i] in scores and text[i:] in scores:
                pairs.append((-score, text[:i], text[i:]))
    pairs.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in pairs]


def _expect(path: Path, model: SentencePiece, kind: int, byte_fallback: bool = False) -> None:
    if model.kind != kind or model.byte_fallback != byte_fallback:
        expected = "Unigram model" if kind == UNIGRAM else "BPE model with bytes"
        raise ModelError(f"{path} is no {expected}, as its family has. {CONVERT}")


def _named(settings: Mapping[str, Any], name: str, default: str) -> str:
    token = settings.get(name, default)
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)


def _piece(fields: Mapping[int, Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
    return Piece(fields[1].decode() if 1 in fields else "", score, int(fields.get(3, NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer's message by their numbers: integers, or bytes."""
    place = 0
    while place < len(data):
        key, place = _integer(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _integer(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _integer(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {wire}")
        if place + length > len(data):
            raise ValueError("a field is cut short")
        yield number, data[place : place + length]
        place += length


def _integer(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")

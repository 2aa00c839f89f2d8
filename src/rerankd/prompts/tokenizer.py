"""A checkpoint's tokenizer, read without transformers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rerankd import work
from rerankd.core import ModelError, Side, TextToken
from rerankd.prompts.sentencepiece import sentencepiece_tokenizer

_SEAM = re.compile(r"(?<=[A-Za-z\u4e00-\u9fa5])[ \n](?=[A-Za-z\u4e00-\u9fa5])")
"""White space between characters that every version of Unicode counts as letters."""
SLICE_CHARACTERS = 1 << 16
"""Characters that are tokenised between two checks that somebody still waits; a longer text is tokenised alone. A
character takes up to 600 bytes while its text is tokenised.
"""
LONG_CHARACTERS = 1 << 18
"""Texts of more characters are tokenised one after another, in all threads: a few at a time take gigabytes."""
SECONDS_BETWEEN_CHECKS = 0.1
UNSETTLED_WORDS = 8
"""The last words of a text's beginning: the text that follows may change their tokens, since normalisers and
pre-tokenisers look ahead."""


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer whose own truncation and padding are off.

    max_length: `model_max_length` of tokenizer_config.json, or None where it sets none
    special_tokens: `bos_token`, `eos_token`, ... of tokenizer_config.json
    side: where sentence-transformers cuts texts: `truncation_side` of tokenizer_config.json, else the direction of the
        truncation that tokenizer.json carries, else "right"
    has_types: whether the model gets token types, where it takes any
    """

    tokenizer: Tokenizer
    max_length: int | None
    special_tokens: dict[str, str]
    side: Side = "right"
    has_types: bool = True
    _long: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def token_id(self, token: str) -> int:
        """The id of a string that is one token; ModelError for any other string."""
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"The tokenizer has no token {token!r}, which the model's scores need.")
        return int(number)

    def ids(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """The token ids of each text as it stands; of much text by several threads, slice by slice.

        special: whether the tokens that begin and end a prompt are added

        Raises what `work.check` and `work.check_tokens` raise, between slices.
        """
        encode = self.tokenizer.encode_batch_fast
        ids: list[list[int]] = []
        tokens = 0
        for batch in _slices(texts, SLICE_CHARACTERS):
            work.check()
            with self._in_turn(batch):
                slice_ids = [encoding.ids for encoding in encode(batch, add_special_tokens=special)]
            tokens += sum(map(len, slice_ids))
            work.check_tokens(tokens)
            ids += slice_ids
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters of `text` where each of its tokens begins (included) and ends (excluded)."""
        with self.encoded(text) as encoding:
            offsets: list[tuple[int, int]] = encoding.offsets
        return offsets

    def tokens(self, text: str, special: bool) -> list[TextToken]:
        """The tokens of `text`, each a value of the answer; with `special`, also the tokens around a prompt.

        Raises what `work.check` and `work.count` raise.
        """
        work.check()
        with self.encoded(text, special) as encoding:
            work.count("values", len(encoding))
            rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
            return [
                TextToken(number, token, bool(added), (0, 0) if added else place)
                for number, token, added, place in rows
            ]

    @contextmanager
    def encoded(self, text: str, special: bool = False) -> Iterator[Any]:
        """The library's encoding of `text`. It takes much memory for a long text, and lasts no longer than the
        context."""
        with self._in_turn((text,)):
            # A batch, since `encode` lets no other thread run.
            yield self.tokenizer.encode_batch([text], add_special_tokens=special)[0]

    @contextmanager
    def _in_turn(self, texts: Sequence[str]) -> Iterator[None]:
        """Wait while another thread tokenises a long text, if one of `texts` is long. Raises as `work.check` does."""
        if max(map(len, texts), default=0) <= LONG_CHARACTERS:
            yield
            return
        while not self._long.acquire(timeout=SECONDS_BETWEEN_CHECKS):
            work.check()
        try:
            yield
        finally:
            self._long.release()

    def reach(self, text: str, tokens: int | None, side: Side) -> str:
        """`text`, or what `side` leaves of it when it has more than `tokens` tokens: spares reading a long text.

        What is left has more than `tokens` tokens, of which the first `tokens` (for `side="left"` the last) are those
        of the whole text. It is all of the text where that cannot be told from a part: a text that is one long word to
        the pre-tokeniser, or of which the end is wanted and that has no white space between letters.
        """
        if tokens is None:
            return text
        length = 8 * tokens  # English takes about five characters a token.
        while length < len(text):
            remainder = self._start(text, length, tokens) if side == "right" else self._end(text, length, tokens)
            if remainder is not None:
                return remainder
            length *= 4
        return text

    def _start(self, text: str, length: int, tokens: int) -> str | None:
        """The first `length` characters, if enough words end in them behind the first `tokens` tokens."""
        start = text[:length]
        with self.encoded(start) as encoding:
            words = encoding.word_ids
        return start if len(set(words[tokens:])) > UNSETTLED_WORDS else None

    def _end(self, text: str, length: int, tokens: int) -> str | None:
        """About the last `length` characters, if they have more than `tokens` tokens.

        The text is parted before the white space between two words, where the pre-tokeniser parts it too, so that
        nothing before can change a token.
        """
        seam = _SEAM.search(text, len(text) - length) if self._parts_words() else None
        end = text[seam.start() :] if seam else ""
        return end if len(self.ids([end])[0]) > tokens else None

    def _parts_words(self) -> bool:
        parts = self.tokenizer.pre_tokenizer.pre_tokenize_str("ab cd\nef") if self.tokenizer.pre_tokenizer else []
        return {2, 5} <= {end for _, (_, end) in parts}

    def cut(self, text: str, tokens: int, side: Side) -> str:
        """The longest start of `text`, or end for `side="left"`, that takes at most `tokens` tokens.

        It is cut between characters.
        """
        while tokens > 0:
            offsets = self.offsets(text)
            if len(offsets) <= tokens:
                return text
            # A character that has lost some of its bytes is removed too.
            place = tokens if side == "right" else len(offsets) - tokens
            (_, end), (start, _) = offsets[place - 1], offsets[place]
            text = text[: min(end, start)] if side == "right" else text[max(end, start) :]
        return ""


def _slices(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """The texts in their order, some at a time, of at most so many characters together or one text."""
    start = characters = 0
    for stop, text in enumerate(texts):
        if start < stop and characters + len(text) > most:
            yield texts[start:stop]
            start, characters = stop, 0
        characters += len(text)
    yield texts[start:]


def well_formed(text: str) -> str:
    """`text` with each lone surrogate, which no tokenizer can take, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file. ModelError for an unreadable file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    except RecursionError:
        raise ModelError(f"{path} cannot be read: it is nested too deeply.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} cannot be read: it holds no JSON object.")
    return value


def load_tokenizer(folder: Path) -> LoadedTokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json`, or the `vocab.txt` of older BERT checkpoints, or a SentencePiece
    model.

    Raises ModelError where there is none, and for unreadable files.
    """
    settings = read_json(folder / "tokenizer_config.json")
    length = _read_settings(folder / "tokenizer_config.json", settings)
    tokenizer = _read_tokenizer(folder, settings)
    side = settings.get("truncation_side") or (tokenizer.truncation or {}).get("direction", "right")
    if side not in ("left", "right"):
        raise ModelError(
            f"The truncation_side of {folder / 'tokenizer_config.json'} must be 'left' or 'right', not {side!r}."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {key: _content(value) for key, value in settings.items() if key.endswith("_token") and _names(value)}
    return LoadedTokenizer(tokenizer, length, special, side)


def read_length(path: Path, settings: dict[str, Any], name: str) -> int | None:
    """A number of tokens that `path` sets as `name`; None where it sets none. ModelError for another value.

    transformers writes 1e30 for a tokenizer without a limit.
    """
    value = settings.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 1 <= value < float("inf"):
        raise ModelError(f"{path}: `{name}` must be a number of tokens, at least 1, not {value!r:.60}.")
    return int(value)


def _read_settings(path: Path, settings: dict[str, Any]) -> int | None:
    """`model_max_length`. ModelError for an entry of tokenizer_config.json of another form than transformers writes."""
    for name in BERT_SETTINGS:
        if not isinstance(settings.get(name), bool | None):
            raise ModelError(f"{path}: `{name}` must be true, false or null, not {settings[name]!r:.60}.")
    for name in ("unk_token", "sep_token", "cls_token"):
        if name in settings and settings[name] is not None and not _names(settings[name]):
            raise ModelError(f"{path}: `{name}` must be a token, not {settings[name]!r:.60}.")
    return read_length(path, settings, "model_max_length")


def _names(token: Any) -> bool:
    """Whether an entry of tokenizer_config.json is a token."""
    return isinstance(token.get("content") if isinstance(token, dict) else token, str) and bool(token)


def _read_tokenizer(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare Exception.
            raise ModelError(f"{path} cannot be read: {error}.") from error
        _apply_bert_settings(tokenizer, settings)
        return tokenizer
    if (folder / "vocab.txt").is_file():
        return _bert_tokenizer(folder / "vocab.txt", settings)
    model_type = read_json(folder / "config.json").get("model_type")
    converted = sentencepiece_tokenizer(folder, settings, model_type)
    if converted is not None:
        return converted
    raise ModelError(
        f"{folder} holds neither tokenizer.json nor vocab.txt nor a SentencePiece model. Where the checkpoint has "
        "another tokenizer file, transformers makes a tokenizer.json of it: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
    )


BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Entries of tokenizer_config.json, and the properties of BertNormalizer that these entries set."""


def _apply_bert_settings(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Let tokenizer_config.json overrule the normalizer of tokenizer.json, as transformers does."""
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        for setting, attribute in BERT_SETTINGS.items():
            if setting in settings:
                setattr(tokenizer.normalizer, attribute, settings[setting])


def _bert_tokenizer(vocabulary: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer that transformers' BertTokenizer makes from a vocab.txt."""
    names = {name: _content(settings.get(f"{name}_token") or f"[{name.upper()}]") for name in ("unk", "sep", "cls")}
    try:
        words = models.WordPiece.read_file(str(vocabulary))
    except Exception as error:  # The library raises bare Exception.
        raise ModelError(f"{vocabulary} cannot be read: {error}.") from error
    missing = [token for token in names.values() if token not in words]
    if missing:
        raise ModelError(f"{vocabulary} lacks {', '.join(missing)}, which BERT's prompts need.")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=names["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    _apply_bert_settings(tokenizer, settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in ("[PAD]", *names.values(), "[MASK]") if token in words])
    tokenizer.post_processor = processors.BertProcessing(
        (names["sep"], words[names["sep"]]), (names["cls"], words[names["cls"]])
    )
    return tokenizer


def _content(token: Any) -> str:
    """A token of tokenizer_config.json: a string, or an object with its string as `content`."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def lower_case(tokenizer: Tokenizer) -> None:
    """Lower-case all text first, as sentence-transformers' `do_lower_case` does."""
    existing = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])

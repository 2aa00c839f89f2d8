"""The requests of the load generator: random texts of a given length in tokens, or the lines of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rerankd.core import RerankdError

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer

ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to send.

    tokens: its input tokens as counted here (query, separator and document for each document), or None
    fields: further fields of the request body, as a jsonl line gives them
    """

    query: Any
    documents: Sequence[Any]
    tokens: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The source of requests: random texts, or the lines of a file. The fields are options of `rerankd bench`."""

    dataset_name: Literal["random-rerank", "jsonl"] = "random-rerank"
    dataset_path: Path | None = None
    random_input_len: int = 1024
    random_batch_size: int = 1
    random_range_ratio: float = 0.0
    seed: int = 0

    def samples(self, prompts: int, tokenizer: str) -> list[Sample]:
        """Requests of so many documents (random-rerank) or so many requests (jsonl).

        tokenizer: a folder or hub id with the tokenizer.json by which random texts get their length

        Raises RerankdError for options that leave none.
        """
        if self.dataset_name == "jsonl":
            if self.dataset_path is None:
                raise RerankdError("--dataset-path: needed for --dataset-name jsonl.")
            return read_jsonl(self.dataset_path, prompts)
        if self.dataset_path is not None:
            raise RerankdError("--dataset-path: random-rerank reads no file; give --dataset-name jsonl.")
        texts = load_tokenizer(tokenizer)
        return random_rerank(
            texts, prompts, self.random_input_len, self.random_batch_size, self.random_range_ratio, self.seed
        )


def tokenizer_name(model: str, root: str | None) -> str:
    """Where a model's tokenizer is, by the client's name of the model and the server's `root` of it.

    A path of another machine does not exist here, so the model's own name is used.
    """
    if Path(model).exists() or root is None or (Path(root).is_absolute() and not Path(root).exists()):
        return model
    return root


def load_tokenizer(name: str) -> Tokenizer:
    """The `tokenizer.json` of a local folder, or of a Hugging Face id.

    Raises RerankdError when there is none or it cannot be read.
    """
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    folder = Path(name)
    way_out = "give --tokenizer a folder with tokenizer.json, or send a file with --dataset-name jsonl"
    if folder.exists():
        path = folder / "tokenizer.json" if folder.is_dir() else folder
        if not path.is_file():
            raise RerankdError(f"--tokenizer: {folder} has no tokenizer.json; {way_out}.")
    else:
        try:
            path = Path(hf_hub_download(name, "tokenizer.json"))
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RerankdError(
                f"--tokenizer: no tokenizer.json for {name!r} here or on the hub ({first_line}); {way_out}."
            ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise RerankdError(f"--tokenizer: {path} cannot be read ({error}); {way_out}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True, slots=True)
class RandomTexts:
    """Texts that a tokenizer reads back as a wanted number of tokens.

    A text is a run of consecutive vocabulary entries from a random start, special tokens left out, as vLLM's
    random datasets make them: no two runs share a prefix by chance, and a cache has nothing to find.
    """

    tokenizer: Tokenizer
    ids: numpy.ndarray
    random: numpy.random.Generator

    @classmethod
    def of(cls, tokenizer: Tokenizer, seed: int) -> RandomTexts:
        import numpy

        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
        return cls(tokenizer, numpy.array(ids), numpy.random.default_rng(seed))

    def lengths(self, mean: int, ratio: float, count: int) -> list[int]:
        """`count` lengths, uniform from (1 - ratio) to (1 + ratio) times the mean."""
        low, high = math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))
        return [max(1, int(n)) for n in self.random.integers(low, high + 1, size=count)]

    def texts(self, lengths: Sequence[int]) -> list[tuple[str, int]]:
        """A text for each length, with the length it has: another one where none of that length was found."""
        import numpy

        starts = self.random.integers(len(self.ids), size=len(lengths))
        runs = [self.ids[(s + numpy.arange(n)) % len(self.ids)] for s, n in zip(starts, lengths, strict=True)]
        results: list[tuple[str, int]] = [("", 0)] * len(lengths)
        open_places = list(range(len(lengths)))
        for _ in range(ATTEMPTS):
            texts = self.tokenizer.decode_batch([runs[i].tolist() for i in open_places], skip_special_tokens=False)
            encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
            for i, text, encoding in zip(open_places, texts, encodings, strict=True):
                results[i] = text, len(encoding)
                missing = max(lengths[i] - len(encoding), 0)
                runs[i] = numpy.append(encoding.ids[: lengths[i]], self.random.choice(self.ids, size=missing))
            open_places = [i for i in open_places if results[i][1] != lengths[i]]
            if not open_places:
                break
        return results


def random_rerank(
    tokenizer: Tokenizer, documents: int, input_len: int, batch_size: int, range_ratio: float, seed: int
) -> list[Sample]:
    """vLLM's `random-rerank` dataset: one query, `documents` documents, `batch_size` of them to a request.

    `input_len` tokens make a pair: half for the query less one for the separator, the rest for a document,
    less what the tokenizer adds to a text. Lengths vary by `range_ratio` (in [0, 1)) around that.

    Raises RerankdError for lengths and ratios that leave no text.
    """
    if not 0 <= range_ratio < 1:
        raise RerankdError(f"--random-range-ratio: {range_ratio} is not in [0, 1).")
    if documents < 1 or batch_size < 1:
        raise RerankdError("--num-prompts and --random-batch-size: both must be at least 1.")
    added = tokenizer.num_special_tokens_to_add(False)
    query_mean = input_len // 2 - 1 - added
    if query_mean < 1:
        raise RerankdError(
            f"--random-input-len: {input_len} tokens leave none for the query, which gets half of them less "
            f"{1 + added} for special tokens; give at least {2 * (2 + added)}."
        )
    texts = RandomTexts.of(tokenizer, seed)
    query_length = texts.lengths(query_mean, range_ratio, 1)[0]
    ((query, query_tokens),) = texts.texts([query_length])
    document_mean = max(1, input_len - query_length - 1 - added)
    pieces = texts.texts(texts.lengths(document_mean, range_ratio, documents))
    return [
        Sample(query, [text for text, _ in batch], sum(tokens + query_tokens + 1 for _, tokens in batch))
        for batch in (pieces[start : start + batch_size] for start in range(0, documents, batch_size))
    ]


def read_jsonl(path: Path, count: int) -> list[Sample]:
    """`count` requests from a file of one JSON object a line, from the top again where it has fewer.

    A line holds `query` and `documents` (or `texts`); its other fields go into the request body as they are.

    Raises RerankdError naming the line for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RerankdError(f"--dataset-path: {path} cannot be read ({error}).") from error
    samples = [parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise RerankdError(f"--dataset-path: {path} holds no line.")
    return [samples[i % len(samples)] for i in range(count)]


def parse_line(line: str, place: str) -> Sample:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise RerankdError(f"{place}: not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise RerankdError(f"{place}: not a JSON object; a line is {{'query': ..., 'documents': [...]}}.")
    query, documents = fields.pop("query", None), fields.pop("documents", None)
    if documents is None:
        documents = fields.pop("texts", None)
    if not query:
        raise RerankdError(f"{place}: query: missing or empty.")
    if not isinstance(documents, list) or not documents:
        raise RerankdError(f"{place}: documents: must be a list of at least one document.")
    return Sample(query, documents, fields=fields)

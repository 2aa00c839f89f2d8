"""Rows of TSV, CSV, JSONL and Parquet files as dictionaries, each with the number of its line."""

from __future__ import annotations

import base64
import csv
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.rank.files import COMPRESSIONS, STANDARD, BadLine, BadLines, FileProblem, Source, needed

CELL_LIMIT = 64 << 20
"""Characters of a CSV's cell, which may go over many lines. The library takes up to eight bytes for each."""
ROWS_AT_ONCE = 64
"""Rows of a Parquet file that are read at a time: each may hold a picture."""
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"\x1aE\xdf\xa3": "video/webm",
}
"""By the first bytes of a file. Readers look at the bytes too: the type of others does not matter."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The meanings of a file's columns.

    names: for each meaning, the names that a header may have for it
    positions: the meanings of columns without a header, for each number of columns
    """

    names: Mapping[str, Sequence[str]]
    positions: Mapping[int, Sequence[str]]

    def meaning(self, header: str) -> str | None:
        """The meaning of a column, by its header."""
        word = header.strip().lower().replace("-", "_")
        return next((meaning for meaning, names in self.names.items() if word in names), None)

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of a row by meaning, those without one left out."""
        return {meaning: value for name, value in row.items() if (meaning := self.meaning(name)) and value is not None}


def rows(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file by its suffix; without one JSONL where it begins with `{`, else TSV.

    Cells stand under the file's own names, or without a header under their meanings. Raises FileProblem.
    """
    if source.format == "parquet":
        yield from _parquet(source, columns)
    elif source.format == "csv":
        yield from _csv(source, columns, bad)
    else:
        yield from _lines(source, columns, bad)


def _lines(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    form = {"json": "jsonl", "jsonl": "jsonl", "ndjson": "jsonl", "tsv": "tsv"}.get(source.format)
    named: list[str] | None = None
    first = True
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            text = decoded(source, number, raw.removeprefix(b"\xef\xbb\xbf") if first else raw)
            form = form or ("jsonl" if text.lstrip().startswith("{") else "tsv")
            if form == "jsonl":
                yield number, json_object(source, number, text)
            else:
                cells = text.split("\t")
                if first and any(columns.meaning(cell) for cell in cells):
                    named = cells
                else:
                    yield number, _row(source, number, cells, named, columns)
        except BadLine as problem:
            bad.add(problem)
        first = False


def _row(
    source: Source, number: int, cells: Sequence[str], named: Sequence[str] | None, columns: Columns
) -> dict[str, Any]:
    names = named or columns.positions.get(len(cells))
    if names is None:
        wanted = " or ".join(", ".join(one) for one in columns.positions.values())
        raise BadLine(source.name, number, f"has {len(cells)} columns; without a header they are {wanted}.")
    if len(cells) != len(names):
        raise BadLine(source.name, number, f"has {len(cells)} columns, the header {len(names)}.")
    return dict(zip(names, cells, strict=True))


def _csv(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(CELL_LIMIT)
    # The ends of lines stay: a cell in quotes may hold some.
    lines = (line.decode("utf-8", "surrogateescape") for line in source.whole_lines())
    reader = csv.reader(lines, strict=True)
    named: list[str] | None = None
    number = 1
    while True:
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            for cell in cells:
                if not cell.isascii():
                    decoded(source, number, cell.encode("utf-8", "surrogateescape"))
            if named is None:
                cells[0] = cells[0].removeprefix("\ufeff")
                named = cells
                if not any(columns.meaning(cell) for cell in cells):
                    words = ", ".join(names[0] for names in columns.names.values())
                    raise FileProblem(f"{source.name}: a CSV file begins with a header, of {words}.")
            else:
                yield number, _row(source, number, cells, named, columns)
        except csv.Error as error:
            bad.add(BadLine(source.name, number, f"is not CSV: {error}."))
        except BadLine as problem:
            bad.add(problem)
        finally:
            number = reader.line_num + 1


def _parquet(source: Source, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    if source.path == STANDARD:
        raise FileProblem("standard input cannot be Parquet; give a file.")
    if source.path.lower().endswith(COMPRESSIONS):
        raise FileProblem(f"{source.path}: Parquet files are read as they are; decompress it first.")
    parquet = needed("pyarrow.parquet", "Parquet files")
    number = 0
    with source.open() as stream:
        try:
            file = parquet.ParquetFile(stream)
        except Exception as error:
            raise FileProblem(f"{source.name} is not a Parquet file: {error}.") from error
        wanted = [name for name in file.schema_arrow.names if columns.meaning(name)]
        if not wanted:
            words = ", ".join(names[0] for names in columns.names.values())
            raise FileProblem(f"{source.name} has none of the columns {words}.")
        # Other columns are not read, and named all the same.
        empty: dict[str, Any] = dict.fromkeys(file.schema_arrow.names)
        for batch in _batches(source, file, wanted):
            for row in batch.to_pylist():
                number += 1
                source.update(repr(row).encode("utf-8", "surrogatepass"))
                yield number, empty | {name: _plain(cell) for name, cell in row.items()}


def _plain(cell: Any) -> Any:
    """A cell of Parquet as JSON has it. Bytes are `data:` URLs; `{"bytes", "path"}` is how Hugging Face's datasets
    hold an image or a video."""
    if isinstance(cell, dict):
        if cell.keys() == {"bytes", "path"}:
            kind = mimetypes.guess_type(cell["path"] or "")[0]
            return cell["path"] if cell["bytes"] is None else _data_url(cell["bytes"], kind)
        return {name: _plain(one) for name, one in cell.items() if one is not None}
    if isinstance(cell, list):
        return [_plain(one) for one in cell]
    if isinstance(cell, bytes):
        return _data_url(cell)
    return cell if cell is None or isinstance(cell, (str, int, float)) else str(cell)


def _data_url(data: bytes, kind: str | None = None) -> str:
    kind = kind or next(
        (one for first, one in MEDIA_TYPES.items() if data.startswith(first)), "application/octet-stream"
    )
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _batches(source: Source, file: Any, columns: Sequence[str]) -> Iterator[Any]:
    try:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)
    except Exception as error:  # the library raises several kinds for a damaged file
        raise FileProblem(f"{source.name} cannot be read: {error}.") from error


def decoded(source: Source, number: int, raw: bytes) -> str:
    """A line as text. Raises BadLine."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine(source.name, number, f"is not UTF-8: byte {error.start} does not decode.") from None


def json_object(source: Source, number: int, text: str) -> dict[str, Any]:
    """A line's JSON object. Raises BadLine."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadLine(source.name, number, "is nested too deeply.") from None
    except ValueError as error:
        raise BadLine(source.name, number, f"is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadLine(source.name, number, "is not a JSON object.")
    return value

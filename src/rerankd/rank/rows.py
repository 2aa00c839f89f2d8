"""Rows of TSV, CSV, JSONL and Parquet files as dictionaries, with their line numbers."""

from __future__ import annotations

import base64
import csv
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.core.counts import counted
from rerankd.rank.files import COMPRESSIONS, STANDARD, BadLine, BadLines, FileProblem, Source, needed

CELL_LIMIT = 64 << 20
"""Longest cell of a CSV file in characters. Python's csv module uses up to eight bytes for each character."""
UNCLOSED = "unexpected end of data"
"""What Python's csv module says of a file that ends in a quoted cell."""
ROWS_AT_ONCE = 64
"""Rows of a Parquet file that are read at once. The number is small, because each row may hold an image."""
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"\x1aE\xdf\xa3": "video/webm",
}
"""Media types by the first bytes of a file. Other types need no name, because decoders look at the bytes too."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a kind of file may have, and the field that each of them means.

    names: the accepted column names of each field
    positions: for a file without a header, the fields in order, by the number of columns
    """

    names: Mapping[str, Sequence[str]]
    positions: Mapping[int, Sequence[str]]

    def meaning(self, header: str) -> str | None:
        """The field that a column means, by its name in the header; None for an unknown column."""
        word = _word(header)
        return next((meaning for meaning, names in self.names.items() if word in names), None)

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of a row by field. Unknown columns and empty cells (None) are left out.

        Of several columns with one meaning, the first of the field's `names` is read.
        """
        return {meaning: cells[0][1] for meaning, cells in self._cells(row) if cells}

    def note_unread(self, source: Source, row: Mapping[str, Any], bad: BadLines) -> None:
        """Note each column that `read` does not take because another column has its meaning."""
        for _, cells in self._cells(row):
            for name, _ in cells[1:]:
                bad.note(f"{source.name}: `{name}` is not used, because `{cells[0][0]}` has the same meaning")

    def _cells(self, row: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        """Each field with the cells that mean it and their columns' names, in the order of preference."""
        words = {_word(name): value for name, value in row.items() if value is not None}
        for meaning, names in self.names.items():
            yield meaning, [(name, words[name]) for name in names if name in words]

    def check(self, source: Source, line: int, header: Sequence[str]) -> None:
        """Raises FileProblem for a header that has the name of a field twice."""
        words = [_word(name) for name in header if self.meaning(name)]
        if twice := sorted({word for word in words if words.count(word) > 1}):
            where = f"{source.name}, line {line}" if line else source.name
            raise FileProblem(f"{where}: the header has the column `{twice[0]}` twice; remove or rename one of them.")


def _word(header: str) -> str:
    return header.strip().lower().replace("-", "_")


def rows(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with its line number (from 1) and its cells by column name.

    The suffix gives the format. A file without a suffix is JSONL if it begins with `{`, else TSV. Without a header,
    cells have the names of their fields. Raises FileProblem.
    """
    if source.format == "parquet":
        found = _parquet(source, columns)
    elif source.format == "csv":
        found = _csv(source, columns, bad)
    else:
        found = _lines(source, columns, bad)
    for number, row in found:
        columns.note_unread(source, row, bad)
        yield number, row


def _lines(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    form = {"json": "jsonl", "jsonl": "jsonl", "ndjson": "jsonl", "tsv": "tsv"}.get(source.format)
    header: _Header | None = None
    first = True
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            text = decoded(source, number, raw)
            form = form or ("jsonl" if text.lstrip().startswith("{") else "tsv")
            if form == "jsonl":
                yield number, json_object(source, number, text)
            else:
                cells = text.split("\t")
                if first and any(columns.meaning(cell) for cell in cells):
                    columns.check(source, number, cells)
                    header = _Header(cells, "the header")
                else:
                    header = header or _by_position(source, number, cells, columns)
                    yield number, _row(source, number, cells, header)
        except BadLine as problem:
            bad.add(problem)
        first = False


@dataclass(frozen=True, slots=True)
class _Header:
    """The names of a file's columns, and what gave their number: the header, or the first row without one."""

    names: Sequence[str]
    origin: str


def _by_position(source: Source, number: int, cells: Sequence[str], columns: Columns) -> _Header:
    """The columns of a file without a header, by its first row. Raises BadLine."""
    names = columns.positions.get(len(cells))
    if names is None:
        found, accepted = counted(len(cells), "column"), " or ".join(map(", ".join, columns.positions.values()))
        raise BadLine(source.name, number, f"has {found}; without a header, the columns are {accepted}.")
    return _Header(names, f"line {number}")


def _row(source: Source, number: int, cells: Sequence[str], header: _Header) -> dict[str, Any]:
    if len(cells) != len(header.names):
        problem = f"has {counted(len(cells), 'column')}, but {header.origin} has {len(header.names)}"
        way_out = "put quotes around a text with a comma" if source.format == "csv" else "no text may have a tab"
        raise BadLine(source.name, number, f"{problem}; {way_out}.")
    return dict(zip(header.names, cells, strict=True))


def _csv(source: Source, columns: Columns, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(CELL_LIMIT)
    # Lines keep their ends, because a quoted cell may hold line ends.
    lines = (line.decode("utf-8", "surrogateescape") for line in source.whole_lines())
    reader = csv.reader(lines, strict=True)
    header: _Header | None = None
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
            if header is None:
                columns.check(source, number, cells)
                header = _Header(cells, "the header")
                if not any(columns.meaning(cell) for cell in cells):
                    words = ", ".join(names[0] for names in columns.names.values())
                    raise FileProblem(f"{source.name}: a CSV file must begin with a header; its columns are {words}.")
            else:
                yield number, _row(source, number, cells, header)
        except csv.Error as error:
            problem = f"is not CSV: {error}."
            if str(error) == UNCLOSED:
                problem = "has a quote that nothing closes, so this and all later lines are one row; close the quote."
            bad.add(BadLine(source.name, number, problem))
        except BadLine as problem:
            bad.add(problem)
        finally:
            number = reader.line_num + 1


def _parquet(source: Source, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    if source.path == STANDARD:
        raise FileProblem("Parquet cannot be read from standard input; give a file.")
    if source.path.lower().endswith(COMPRESSIONS):
        raise FileProblem(f"{source.path}: a compressed Parquet file cannot be read; decompress it first.")
    parquet = needed("pyarrow.parquet", "Parquet files")
    number = 0
    with source.open() as stream:
        try:
            file = parquet.ParquetFile(stream)
        except Exception as error:
            raise FileProblem(f"{source.name} is not a Parquet file: {error}.") from error
        columns.check(source, 0, file.schema_arrow.names)
        known = [name for name in file.schema_arrow.names if columns.meaning(name)]
        if not known:
            words = ", ".join(names[0] for names in columns.names.values())
            raise FileProblem(f"{source.name} has none of the columns {words}.")
        # Unknown columns are not read. Their names stay in the rows, so that a caller can report them.
        empty: dict[str, Any] = dict.fromkeys(file.schema_arrow.names)
        for batch in _batches(source, file, known):
            for row in batch.to_pylist():
                number += 1
                source.update(repr(row).encode("utf-8", "surrogatepass"))
                yield number, empty | {name: _json_value(cell) for name, cell in row.items()}


def _json_value(cell: Any) -> Any:
    """A Parquet cell as a JSON value. Bytes become a `data:` URL.

    A dictionary of `bytes` and `path` is an image or a video, as Hugging Face's `datasets` stores them.
    """
    if isinstance(cell, dict):
        if cell.keys() == {"bytes", "path"}:
            kind = mimetypes.guess_type(cell["path"] or "")[0]
            return cell["path"] if cell["bytes"] is None else _data_url(cell["bytes"], kind)
        return {name: _json_value(value) for name, value in cell.items() if value is not None}
    if isinstance(cell, list):
        return [_json_value(value) for value in cell]
    if isinstance(cell, bytes):
        return _data_url(cell)
    return cell if cell is None or isinstance(cell, (str, int, float)) else str(cell)


def _data_url(data: bytes, kind: str | None = None) -> str:
    kind = kind or next(
        (media_type for first, media_type in MEDIA_TYPES.items() if data.startswith(first)), "application/octet-stream"
    )
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _batches(source: Source, file: Any, columns: Sequence[str]) -> Iterator[Any]:
    try:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)
    except Exception as error:  # pyarrow raises several kinds of exception for a damaged file
        raise FileProblem(f"{source.name} cannot be read: {error}.") from error


def decoded(source: Source, number: int, raw: bytes) -> str:
    """Decode a line from UTF-8. Raises BadLine."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine(source.name, number, f"is not valid UTF-8 at byte {error.start} of the line.") from None


def json_object(source: Source, number: int, text: str) -> dict[str, Any]:
    """Parse a line as a JSON object. Raises BadLine."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadLine(source.name, number, "is nested too deeply.") from None
    except ValueError as error:
        raise BadLine(source.name, number, f"is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadLine(source.name, number, "is not a JSON object.")
    return value

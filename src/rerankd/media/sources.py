"""The sources of media: `data:` URIs, files below allowed folders, paths, and URLs."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard
from urllib.parse import unquote, unquote_to_bytes

from rerankd.media.decoding import GoOn
from rerankd.media.limits import BadMedia, over_bytes

_SHOWN = 100
_SLICE = 1 << 20
"""Characters of a `data:` URI that are decoded at a time."""
_MOST_BYTES = 4
"""The most bytes of a character in UTF-8."""


@dataclass(frozen=True, slots=True)
class Access:
    """The sources that a request's media may come from.

    local_folders: folders below which `file:` URLs are read; empty for none; None (offline, where the caller owns the
        machine) for all `file:` URLs and plain paths
    allow_private: whether URLs may lead to loopback, private and link-local addresses
    """

    local_folders: tuple[Path, ...] | None = ()
    allow_private: bool = False


def is_url(source: object) -> bool:
    """Whether a source is fetched over http(s)."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


class Frames(NamedTuple):
    """A video as a list of pictures: how many, and the source of each by its index."""

    total: int
    at: Callable[[int], object]


def listed_frames(source: object, most: int) -> Frames | None:
    """The frames of a sequence of pictures or of a `data:video/jpeg;base64,` URI; None for any other source.

    The URI is vLLM's form for a video of which the client took the frames: one JPEG after the other in base64,
    with commas between them. Raises BadMedia for more than `most`.
    """
    if isinstance(source, (list, tuple)):
        _check_count(len(source), most)
        return Frames(len(source), source.__getitem__)
    return _jpeg_frames(source, most) if _is_data(source) else None


def local_size(source: object, access: Access) -> int:
    """Bytes at most that `read_local` gives for a source, which is not read yet. Blocks on the disk; raises alike."""
    if _is_data(source):
        comma = source.find(",")
        characters = len(source) - comma
        return characters * 3 // 4 + 3 if _is_base64(source, comma) else characters * _MOST_BYTES
    path, folders = _local_path(source, access)
    return _regular(path, folders)[1]


def read_local(source: object, max_bytes: int, access: Access, go_on: GoOn) -> bytes:
    """The bytes behind a `data:` URI, a `file:` URL or a path. Blocks on the disk; `go_on` is asked meanwhile.

    Raises BadMedia for anything else, for what `access` does not allow, for what cannot be read, and for
    more than `max_bytes`.
    """
    if _is_data(source):
        return _data(source, max_bytes, go_on)
    path, folders = _local_path(source, access)
    return _file(path, max_bytes, folders)


def _jpeg_frames(uri: str, most: int) -> Frames | None:
    comma = uri.find(",")
    kind, *_ = uri[5:comma].lower().split(";", 1)
    if comma < 0 or kind.strip() != "video/jpeg" or not _is_base64(uri, comma):
        return None
    _check_count(uri.count(",", comma), most)
    commas = [comma]
    while (comma := uri.find(",", comma + 1)) >= 0:
        commas.append(comma)
    ends = [*commas[1:], len(uri)]
    return Frames(len(commas), lambda index: f"data:image/jpeg;base64,{uri[commas[index] + 1 : ends[index]]}")


def _check_count(frames: int, most: int) -> None:
    if frames > most:
        raise BadMedia(f"the list holds {frames:,} frames, over the limit of {most:,}; send fewer of them")


def _is_data(source: object) -> TypeGuard[str]:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _is_base64(uri: str, comma: int) -> bool:
    return uri[5:comma].lower().rstrip().endswith(";base64")


def _local_path(source: object, access: Access) -> tuple[Path, tuple[Path, ...] | None]:
    """A path and the folders that it has to lie below, None for anywhere."""
    if isinstance(source, str):
        if source[:5].lower() == "file:":
            return _file_path(source), access.local_folders
        if "://" in source[:_SHOWN]:
            raise BadMedia(f"{_shown(source)} is not an http(s), data: or file: URL")
    if not isinstance(source, (str, os.PathLike)):
        raise BadMedia(f"a {type(source).__name__} is not a URL, a path or a PIL image")
    if access.local_folders is not None:
        raise BadMedia(f"{_shown(str(source))} is not an http(s), data: or file: URL; paths are not read here")
    return Path(source), None


def _data(uri: str, max_bytes: int, go_on: GoOn) -> bytes:
    """RFC 2397, with base64 as browsers forgive it: white space, missing padding, the URL-safe alphabet.

    Piece by piece: escapes and white space would otherwise take many times the memory of what they stand for.
    """
    comma = uri.find(",")
    if comma < 0:
        raise BadMedia("the data: URI has no comma between its type and its data")
    slices = _slices(uri, comma + 1)
    data = io.BytesIO()
    try:
        for piece in _from_base64(slices) if _is_base64(uri, comma) else _from_percents(slices):
            go_on()
            data.write(piece)
            if data.tell() > max_bytes:
                raise over_bytes(max_bytes)
    except BadMedia:
        raise
    except (binascii.Error, ValueError) as error:
        raise BadMedia(f"the data: URI is not valid base64 ({error})") from error
    if not data.tell():
        raise BadMedia("the data: URI is empty")
    return data.getvalue()


def _slices(uri: str, at: int) -> Iterator[str]:
    """The text from `at` on, in slices that split no escape."""
    while at < len(uri):
        end = at + _SLICE
        escape = uri.find("%", end - 2, end)
        if escape >= 0:
            end = escape
        yield uri[at:end]
        at = end


def _from_percents(slices: Iterable[str]) -> Iterator[bytes]:
    return (unquote_to_bytes(piece.encode("utf-8", "replace")) for piece in slices)


def _from_base64(slices: Iterable[str]) -> Iterator[bytes]:
    rest, ended = "", False
    for piece in slices:
        text = "".join((unquote(piece) if "%" in piece else piece).split()).translate(_URL_SAFE)
        letters = text.rstrip("=")
        if ended and letters:
            raise ValueError("data behind the padding")
        ended = ended or len(letters) < len(text)
        rest += letters
        whole = len(rest) // 4 * 4
        yield base64.b64decode(rest[:whole], validate=True)
        rest = rest[whole:]
    yield base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True)


_URL_SAFE = str.maketrans("-_", "+/")


def _file_path(url: str) -> Path:
    """RFC 8089: `file:/path`, `file:///path` or `file://localhost/path`, percent-encoded or not."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path if host in ("", "localhost") else ""
    if not rest.startswith("/"):
        raise BadMedia(f"{_shown(url)} is not an absolute local path; write file:/// and the path from the root")
    return Path(unquote(rest))


def _regular(path: Path, folders: tuple[Path, ...] | None) -> tuple[Path, int]:
    """The regular file that a path leads to in the end, below one of `folders`, and its size."""
    shown = _shown(str(path))
    try:
        # Links are followed before the check: what counts is the file that is read in the end.
        real = path.resolve(strict=True)
        allowed = folders is None or any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError) as error:
        # The error does not say whether a file exists that the request may not read.
        if folders is None:
            raise BadMedia(f"{shown} cannot be read ({_reason(error)})") from error
        allowed = False
    if not allowed:
        raise BadMedia(f"{shown} is not a file below a folder that local media may be read from")
    try:
        found = real.stat()
    except OSError as error:
        raise BadMedia(f"{shown} cannot be read ({_reason(error)})") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadMedia(f"{shown} is not a regular file")
    return real, found.st_size


def _file(path: Path, max_bytes: int, folders: tuple[Path, ...] | None) -> bytes:
    real, _ = _regular(path, folders)
    try:
        with real.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BadMedia(f"{_shown(str(path))} cannot be read ({_reason(error)})") from error
    if not data:
        raise BadMedia(f"{_shown(str(path))} is empty")
    if len(data) > max_bytes:
        raise over_bytes(max_bytes)
    return data


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")

"""The sources of images and videos: `data:` URIs, files in allowed folders, paths, and URLs."""

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

_QUOTED = 100
"""Characters of a source that errors quote."""
_SLICE = 1 << 20
"""Characters of a `data:` URI that are decoded at once."""
_MOST_BYTES = 4
"""Most bytes of a character in UTF-8."""


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
    """A video as a list of images.

    total: number of images
    at: the source of the image at an index
    """

    total: int
    at: Callable[[int], object]


def listed_frames(source: object, limit: int) -> Frames | None:
    """The frames of a sequence of images or of a `data:video/jpeg;base64,` URI; None for any other source.

    Such a URI is vLLM's format for a video whose frames the client has extracted: JPEG files in base64, with commas
    between them. Raises BadMedia for more than `limit` frames.
    """
    if isinstance(source, (list, tuple)):
        _check_count(len(source), limit)
        return Frames(len(source), source.__getitem__)
    return _jpeg_frames(source, limit) if _is_data(source) else None


def local_size(source: object, access: Access) -> int:
    """Most bytes that `read_local` will return for a source. Blocks on the disk. Raises as `read_local`."""
    if _is_data(source):
        comma = source.find(",")
        characters = len(source) - comma
        return characters * 3 // 4 + 3 if _is_base64(source, comma) else characters * _MOST_BYTES
    path, folders = _local_path(source, access)
    return _regular(path, folders)[1]


def read_local(source: object, max_bytes: int, access: Access, go_on: GoOn) -> bytes:
    """The bytes of a `data:` URI, a `file:` URL or a path. Blocks on the disk.

    Raises BadMedia for another source, for a file that `access` does not allow or that cannot be read, and for more
    than `max_bytes`.
    """
    if _is_data(source):
        return _data(source, max_bytes, go_on)
    path, folders = _local_path(source, access)
    return _file(path, max_bytes, folders)


def _jpeg_frames(uri: str, limit: int) -> Frames | None:
    comma = uri.find(",")
    kind, *_ = uri[5:comma].lower().split(";", 1)
    if comma < 0 or kind.strip() != "video/jpeg" or not _is_base64(uri, comma):
        return None
    _check_count(uri.count(",", comma), limit)
    commas = [comma]
    while (comma := uri.find(",", comma + 1)) >= 0:
        commas.append(comma)
    ends = [*commas[1:], len(uri)]
    return Frames(len(commas), lambda index: f"data:image/jpeg;base64,{uri[commas[index] + 1 : ends[index]]}")


def _check_count(frames: int, limit: int) -> None:
    if frames > limit:
        raise BadMedia(f"the list holds {frames:,} frames, over the limit of {limit:,}; send fewer frames")


def _is_data(source: object) -> TypeGuard[str]:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _is_base64(uri: str, comma: int) -> bool:
    return uri[5:comma].lower().rstrip().endswith(";base64")


def _local_path(source: object, access: Access) -> tuple[Path, tuple[Path, ...] | None]:
    """The path of a source, and the folders of which one must contain it; None if any path is allowed."""
    if isinstance(source, str):
        if source[:5].lower() == "file:":
            return _file_path(source), access.local_folders
        if "://" in source[:_QUOTED]:
            raise BadMedia(f"{_quoted(source)} is not an http(s), data: or file: URL")
    if not isinstance(source, (str, os.PathLike)):
        raise BadMedia(f"a value of the type {type(source).__name__} is not a URL, a path or a PIL image")
    if access.local_folders is not None:
        raise BadMedia(f"{_quoted(str(source))} is not an http(s), data: or file: URL; paths are not read here")
    return Path(source), None


def _data(uri: str, max_bytes: int, go_on: GoOn) -> bytes:
    """Decode a `data:` URI (RFC 2397).

    As in browsers, base64 may have white space, no padding, or the URL-safe alphabet.

    The URI is decoded in pieces, because escapes and white space may be many times longer than the data.
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
    """The text from `at` on, in slices that never split a percent escape."""
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
            raise ValueError("data after the padding")
        ended = ended or len(letters) < len(text)
        rest += letters
        whole = len(rest) // 4 * 4
        yield base64.b64decode(rest[:whole], validate=True)
        rest = rest[whole:]
    yield base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True)


_URL_SAFE = str.maketrans("-_", "+/")


def _file_path(url: str) -> Path:
    """The path of a `file:` URL (RFC 8089): `file:/path`, `file:///path` or `file://localhost/path`."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path if host in ("", "localhost") else ""
    if not rest.startswith("/"):
        raise BadMedia(f"{_quoted(url)} is not an absolute local path; write file:/// and the path from the root")
    return Path(unquote(rest))


def _regular(path: Path, folders: tuple[Path, ...] | None) -> tuple[Path, int]:
    """The regular file at a path, with links resolved, and its size in bytes. Raises BadMedia for other files."""
    quoted = _quoted(str(path))
    try:
        # Links are resolved before the check, because the check must apply to the file that is read.
        real = path.resolve(strict=True)
        allowed = folders is None or any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError) as error:
        # The error must not reveal whether a forbidden file exists.
        if folders is None:
            raise BadMedia(f"{quoted} cannot be read ({_reason(error)})") from error
        allowed = False
    if not allowed:
        raise BadMedia(
            f"{quoted} is not a file below a folder that local media may be read from; send the file as a data: URI, "
            "or ask the server's administrator to allow its folder with --allowed-local-media-path"
        )
    try:
        status = real.stat()
    except OSError as error:
        raise BadMedia(f"{quoted} cannot be read ({_reason(error)})") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadMedia(f"{quoted} is not a regular file")
    return real, status.st_size


def _file(path: Path, max_bytes: int, folders: tuple[Path, ...] | None) -> bytes:
    real, _ = _regular(path, folders)
    try:
        with real.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BadMedia(f"{_quoted(str(path))} cannot be read ({_reason(error)})") from error
    if not data:
        raise BadMedia(f"{_quoted(str(path))} is empty")
    if len(data) > max_bytes:
        raise over_bytes(max_bytes)
    return data


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...")

"""Where media come from: `data:` URIs, files below allowed folders, paths, and URLs told apart from them."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from rerankd.media.limits import BadMedia, over_bytes

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Access:
    """What a request's media may reach.

    local_folders: folders below which `file:` URLs are read; empty for none; None where the caller owns the
        machine anyway (offline use), so that plain paths and any `file:` URL are read
    allow_private: whether URLs may lead to loopback, private and link-local addresses
    """

    local_folders: tuple[Path, ...] | None = ()
    allow_private: bool = False


def is_url(source: object) -> bool:
    """Whether a source is fetched over http(s)."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def read_local(source: object, max_bytes: int, access: Access) -> bytes:
    """The bytes behind a `data:` URI, a `file:` URL or a path. Blocks on the disk.

    Raises BadMedia for anything else, for what `access` does not allow, for what cannot be read, and for
    more than `max_bytes`.
    """
    if isinstance(source, str):
        scheme = source[:5].lower()
        if scheme == "data:":
            return _data(source, max_bytes)
        if scheme == "file:":
            return _file(_file_path(source), max_bytes, access.local_folders)
        if "://" in source[:_SHOWN]:
            raise BadMedia(f"{_shown(source)} is not an http(s), data: or file: URL")
    if not isinstance(source, (str, os.PathLike)):
        raise BadMedia(f"a {type(source).__name__} is not a URL, a path or a PIL image")
    if access.local_folders is not None:
        raise BadMedia(f"{_shown(str(source))} is not an http(s), data: or file: URL; paths are not read here")
    return _file(Path(source), max_bytes, None)


def _data(uri: str, max_bytes: int) -> bytes:
    """RFC 2397, with base64 as browsers forgive it: white space, missing padding, the URL-safe alphabet."""
    header, comma, payload = uri[5:].partition(",")
    if not comma:
        raise BadMedia("the data: URI has no comma between its type and its data")
    if not header.lower().rstrip().endswith(";base64"):
        if len(payload) > 3 * max_bytes:
            raise over_bytes(max_bytes)
        data = unquote_to_bytes(payload.encode("utf-8", "replace"))
    else:
        if len(payload) > 3 * (max_bytes * 4 // 3 + 4):
            raise over_bytes(max_bytes)
        if "%" in payload:
            payload = unquote(payload)
        payload = "".join(payload.split()).rstrip("=").translate(_URL_SAFE)
        if len(payload) // 4 * 3 > max_bytes:
            raise over_bytes(max_bytes)
        try:
            data = base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadMedia(f"the data: URI is not valid base64 ({error})") from error
    if not data:
        raise BadMedia("the data: URI is empty")
    if len(data) > max_bytes:
        raise over_bytes(max_bytes)
    return data


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


def _file(path: Path, max_bytes: int, folders: tuple[Path, ...] | None) -> bytes:
    shown = _shown(str(path))
    try:
        # Links are followed before the check: what counts is the file that is read in the end.
        real = path.resolve(strict=True)
        allowed = folders is None or any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError) as error:
        # Whether a file exists is nobody's business who may not read it.
        if folders is None:
            raise BadMedia(f"{shown} cannot be read ({_reason(error)})") from error
        allowed = False
    if not allowed:
        raise BadMedia(f"{shown} is not a file below a folder that local media may be read from")
    try:
        if not stat.S_ISREG(real.stat().st_mode):
            raise BadMedia(f"{shown} is not a regular file")
        with real.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BadMedia(f"{shown} cannot be read ({_reason(error)})") from error
    if not data:
        raise BadMedia(f"{shown} is empty")
    if len(data) > max_bytes:
        raise over_bytes(max_bytes)
    return data


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")

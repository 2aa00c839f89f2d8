from __future__ import annotations

import base64
import os
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.media import sources
from rerankd.media.limits import BadMedia
from rerankd.media.sources import Access, is_url, local_size, read_local

NOWHERE = Access()
OFFLINE = Access(local_folders=None)
MUCH = 1 << 20


def read(source: object, access: Access = NOWHERE, max_bytes: int = MUCH) -> bytes:
    return read_local(source, max_bytes, access, lambda: None)


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["image/png", "video/mp4", "", "image/png;charset=x"]))
def test_data_uris_in_base64(data: bytes, kind: str) -> None:
    plain = base64.b64encode(data).decode()
    safe = base64.urlsafe_b64encode(data).decode()
    for payload in (plain, safe, plain.rstrip("="), quote(plain), plain[:3] + "\n " + plain[3:]):
        assert read(f"data:{kind};base64,{payload}") == data


@given(st.binary(min_size=1, max_size=200))
def test_data_uris_in_percents(data: bytes) -> None:
    assert read(f"DATA:image/png,{quote(data)}") == data


def test_what_no_encoding_holds_is_no_picture_and_no_crash() -> None:
    assert read("data:,a\ud800b") == b"a?b"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,", "is empty"),
        ("data:image/png;base64,!!!!", "not valid base64"),
        ("data:image/png;base64,AAAAA", "not valid base64"),
        ("data:image/png;base64,AAAA,BBBB", "not valid base64"),
        ("data:image/png;base64,AA==BBBB", "not valid base64"),
        ("data:image/png;base64,\udc80\udc80", "not valid base64"),
    ],
)
def test_data_uris_that_cannot_be_read(uri: str, problem: str) -> None:
    with pytest.raises(BadMedia, match=problem):
        read(uri)


@given(st.binary(min_size=1, max_size=300), st.integers(3, 20), st.randoms(use_true_random=False))
def test_slices_of_any_length_join(data: bytes, length: int, random: Any) -> None:
    plain = base64.b64encode(data).decode()
    escaped = "".join(f"%{ord(letter):02x}" if random.random() < 0.3 else letter for letter in plain)
    spaced = "".join(letter + " " * (random.random() < 0.2) for letter in plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_SLICE", length)
        for payload in (plain, escaped, spaced, plain.rstrip("=")):
            uri = f"data:;base64,{payload}"
            assert read(uri) == data
            assert local_size(uri, NOWHERE) >= len(data)
        uri = "data:," + "".join(f"%{byte:02X}" for byte in data)
        assert read(uri) == data
        assert local_size(uri, NOWHERE) >= len(data)


def test_nothing_lies_behind_the_padding_whatever_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SLICE", 4)
    assert read("data:;base64,AAAAAA==") == bytes(4)
    with pytest.raises(BadMedia, match="not valid base64"):
        read("data:;base64,AA==BBBB")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["data:,", "data:;base64,"])
def test_escapes_take_no_memory_of_their_own(form: str) -> None:
    """Three characters each; as one object each they would take 200 MB."""
    uri = form + "%41" * 4_000_000
    tracemalloc.start()
    try:
        read(uri, max_bytes=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_reading_is_ended_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def go_on() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise BadMedia("cancelled")

    monkeypatch.setattr(sources, "_SLICE", 4)
    with pytest.raises(BadMedia, match="cancelled"):
        read_local("data:;base64," + "AAAA" * 100, MUCH, NOWHERE, go_on)
    assert len(asked) == 3


@pytest.mark.parametrize("form", ["data:;base64,{plain}", "data:,{percents}"])
def test_the_byte_limit_of_data_uris(form: str) -> None:
    data = bytes(range(100))
    uri = form.format(plain=base64.b64encode(data).decode(), percents=quote(data))
    assert read(uri, max_bytes=100) == data
    for limit in (99, 50, 1):
        with pytest.raises(BadMedia, match=f"over the limit of {limit} bytes"):
            read(uri, max_bytes=limit)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "media"
    inside.mkdir()
    (inside / "a b.png").write_bytes(b"picture")
    (inside / "deep").mkdir()
    (inside / "deep" / "c.png").write_bytes(b"deep")
    (tmp_path / "media-not").mkdir()
    (tmp_path / "media-not" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return inside


def test_files_below_an_allowed_folder(folder: Path) -> None:
    access = Access(local_folders=(folder,))
    for url in (
        f"file://{folder}/a b.png",
        f"file://{folder}/a%20b.png",
        f"file://localhost{folder}/a%20b.png",
        f"file:{folder}/a%20b.png",
        f"FILE://{folder}/deep/../a%20b.png",
    ):
        assert read(url, access) == b"picture"
    assert read(f"file://{folder}/deep/c.png", access) == b"deep"


def test_allowed_folders_may_be_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert read(f"file://{tmp_path}/link/a b.png", Access(local_folders=(tmp_path / "link",))) == b"picture"


def test_nothing_outside_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    access = Access(local_folders=(folder,))
    for path in (
        f"{tmp_path}/secret",
        f"{folder}/../secret",
        f"{folder}/%2e%2e/secret",
        f"{folder}-not/secret",
        f"{folder}/link",
        f"{folder}/up/secret",
        "/etc/passwd",
        f"{tmp_path}/no such file",
        f"{folder}/no such file",
        f"{folder}/nul%00",
    ):
        with pytest.raises(BadMedia, match=r"local media may be read from; .* with --allowed-local-media-path$"):
            read(f"file://{path}", access)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "file:///dev/zero"])
def test_without_allowed_folders_no_file_is_read(url: str) -> None:
    with pytest.raises(BadMedia, match="is not a file below a folder"):
        read(url)


@pytest.mark.parametrize("url", ["file://host/share/a.png", "file:relative.png", "file://relative.png", "file:"])
def test_file_urls_that_name_no_local_path(url: str) -> None:
    with pytest.raises(BadMedia, match="not an absolute local path"):
        read(url, OFFLINE)


def test_files_that_are_none(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    access = Access(local_folders=(folder,))
    for name in ("pipe", "deep"):
        with pytest.raises(BadMedia, match="not a regular file"):
            read(f"file://{folder}/{name}", access)
    (folder / "empty").touch()
    with pytest.raises(BadMedia, match="is empty"):
        read(f"file://{folder}/empty", access)


def test_the_byte_limit_of_files(folder: Path) -> None:
    assert read(folder / "a b.png", OFFLINE, 7) == b"picture"
    with pytest.raises(BadMedia, match="over the limit of 6 bytes"):
        read(folder / "a b.png", OFFLINE, 6)


def test_offline_paths_are_read(folder: Path) -> None:
    for source in (folder / "a b.png", str(folder / "a b.png"), f"file://{folder}/a b.png"):
        assert read(source, OFFLINE) == b"picture"
    with pytest.raises(BadMedia, match=r"cannot be read \(No such file or directory\)"):
        read(folder / "none.png", OFFLINE)


@pytest.mark.parametrize("source", ["/etc/passwd", "a.png", "", "javascript:alert(1)", Path("/etc/passwd")])
def test_a_server_reads_no_paths(source: object) -> None:
    with pytest.raises(BadMedia, match=r"is not an http\(s\), data: or file: URL; paths are not read here"):
        read(source)


@pytest.mark.parametrize("url", ["ftp://x.test/a.png", "s3://bucket/key", "rtsp://x.test/live"])
@pytest.mark.parametrize("access", [NOWHERE, OFFLINE])
def test_other_schemes(url: str, access: Access) -> None:
    with pytest.raises(BadMedia, match=r"is not an http\(s\), data: or file: URL"):
        read(url, access)


@pytest.mark.parametrize("source", [None, 7, b"bytes", {"url": "x"}])
def test_other_types(source: object) -> None:
    with pytest.raises(BadMedia, match="is not a URL, a path or a PIL image"):
        read(source, OFFLINE)


def test_long_sources_are_shown_short() -> None:
    with pytest.raises(BadMedia) as caught:
        read("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_urls_are_told_by_their_scheme() -> None:
    assert is_url("http://x")
    assert is_url("HTTPS://x")
    assert not is_url("httpx://x")
    assert not is_url("data:,http://x")
    assert not is_url(Path("http://x"))

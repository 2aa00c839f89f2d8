"""A model id becomes a folder with the files needed, from a hub that is served on loopback for the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from rerankd.core import ModelError
from rerankd.models.checkpoint.files import needed_files
from rerankd.models.checkpoint.hub import resolve as resolve_here

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """The few routes of the hub's API that a download asks for; `fetched` lists the files given out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: set[str] = set()
        self.authorizations: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.authorizations.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/team/private"):
            self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif path.startswith("/api/models/team/gated"):
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        elif path.startswith("/api/models/team/model/revision/none"):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif path.startswith("/api/models/team/model/tree/"):
            sizes = {name: (self.server.folder / name).stat().st_size for name in self.names()}
            entries = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()]
            self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)
        elif path in ("/api/models/team/model", "/api/models/team/model/revision/main"):
            info = {"id": "team/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.names()]}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/team/model/resolve/"):
            name = path.split("/", 5)[5]
            content = (self.server.folder / name).read_bytes()
            if body:
                self.server.fetched.add(name)
            headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.reply(200, content, headers, body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def names(self) -> list[str]:
        return [str(path.relative_to(self.server.folder)) for path in self.server.folder.rglob("*") if path.is_file()]

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = tmp_path / "repository"
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    server = FakeHub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def resolve(endpoint: str, home: Path, model: str, *arguments: str, **environment: str) -> tuple[str, str]:
    """In a process of its own, since huggingface_hub reads its environment once: (folder, error)."""
    script = (
        "import sys; from rerankd.models.checkpoint.hub import resolve; from rerankd.core import ModelError\n"
        "try: print(resolve(sys.argv[1], 'huggingface', *sys.argv[2:]))\n"
        "except ModelError as error: print(error, file=sys.stderr); sys.exit(1)"
    )
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script, model, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | own | environment,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout.strip(), result.stderr.strip()


def endpoint(hub: FakeHub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_the_files_needed_and_no_others_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    folder, error = resolve(endpoint(hub), tmp_path / "home", "team/model", HF_TOKEN="hf_secret")
    assert folder, error
    expected = {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}
    assert hub.fetched == expected
    assert {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()} == expected
    assert "Bearer hf_secret" in hub.authorizations
    assert str(tmp_path / "home") in folder


@pytest.mark.slow
def test_a_hub_out_of_reach_falls_back_to_the_cache_and_says_so(hub: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cached, _ = resolve(endpoint(hub), home, "team/model")
    nowhere = "http://127.0.0.1:9"
    folder, note = resolve(nowhere, home, "team/model")
    assert folder == cached, note
    assert "not reached" in note
    assert resolve(nowhere, home, "team/model", HF_HUB_OFFLINE="1")[0] == cached


def test_a_hub_out_of_reach_without_a_cache_is_one_line(tmp_path: Path) -> None:
    folder, error = resolve("http://127.0.0.1:9", tmp_path / "home", "team/model")
    assert not folder
    assert "cannot be reached" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "arguments", "word"),
    [
        ("team/private", (), "neither a local folder nor a model on the hub"),
        ("team/gated", (), "gated"),
        ("team/model", ("none",), "no revision 'none'"),
        ("no such thing!", (), "neither a local folder nor a model id"),
        ("./missing", (), "The folder ./missing does not exist"),
        ("/missing/folder", (), "The folder /missing/folder does not exist"),
    ],
)
def test_what_is_not_there_is_one_line(
    hub: FakeHub, tmp_path: Path, model: str, arguments: tuple[str, ...], word: str
) -> None:
    folder, error = resolve(endpoint(hub), tmp_path / "home", model, *arguments)
    assert not folder
    assert word in error
    assert len(error.splitlines()) == 1


def test_one_form_of_the_weights_is_chosen() -> None:
    sharded = ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    assert set(needed_files(sharded)) == set(sharded[:3])
    assert set(needed_files(["config.json", "pytorch_model.bin", "model.onnx"])) == {"config.json", "pytorch_model.bin"}
    both = ["model.safetensors", "model.safetensors.index.json", "model-1.safetensors"]
    assert needed_files(both) == ["model.safetensors"]
    # What is looked at without its weights is what would be loaded with them: a GGUF file only where nothing else is.
    mixed = ["config.json", "model.safetensors", "model-q8.gguf"]
    assert needed_files(mixed, weights=False) == ["config.json"]
    assert needed_files(mixed) == ["config.json", "model.safetensors"]
    assert needed_files(["README.md", "model-q8.gguf"], weights=False) == ["model-q8.gguf"]


class FakeModelScope(ModuleType):
    """The two names of modelscope that are used, with the arguments that modelscope 1.40 takes."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        super().__init__("modelscope")
        self.asked: list[object] = []

        class HubApi:
            def get_model_files(
                self, model_id: str, revision: str | None = None, root: str | None = None, recursive: bool = True
            ) -> list[dict[str, str]]:
                if error:
                    raise error
                names = ("config.json", "model.safetensors", "pytorch_model.bin", "README.md")
                return [*({"Path": name, "Type": "blob"} for name in names), {"Path": "onnx", "Type": "tree"}]

        def snapshot_download(
            model_id: str, revision: str | None = None, *, allow_patterns: list[str] | None = None
        ) -> str:
            self.asked.append((model_id, revision, allow_patterns))
            return str(folder)

        self.HubApi = HubApi
        self.snapshot_download = snapshot_download


def test_modelscope_gives_the_files_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModelScope(tmp_path)
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    assert resolve_here("team/model", "modelscope", "v1") == tmp_path
    assert fake.asked == [("team/model", "v1", ["config.json", "model.safetensors"])]


def test_modelscope_that_fails_or_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", FakeModelScope(tmp_path, RuntimeError("no such model\nat all")))
    with pytest.raises(ModelError, match=r"^team/model cannot be downloaded from ModelScope: no such model$"):
        resolve_here("team/model", "modelscope")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match=r"pip install 'rerankd\[modelscope\]'"):
        resolve_here("team/model", "modelscope")

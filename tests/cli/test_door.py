"""Options that say who may call: what is made of them, and a server that runs with them."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from rerankd.cli.door import Door, DoorError
from rerankd.server.run import ListenError, bind_unix
from rerankd.server.settings import Cors
from rerankd.server.tls import Tls
from tests.cli.test_options import Started, run, started  # noqa: F401 - a fixture
from tests.server.launched import LAUNCH_SERVER, SERVE, launched

BODY = {"query": "a", "documents": ["b"]}
FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    (["--api-key", "a", "--api-key", "b"], {"api_keys": ("a", "b")}),
    (["--api-key", "a", "--protect-all"], {"api_keys": ("a",), "protect_all": True}),
    (["--api-key-file", "keys"], {"api_key_file": "keys"}),
    (
        ["--allowed-origins", '["https://a"]', "--allowed-methods", '["POST"]', "--allowed-headers", '["X"]'],
        {"allowed_origins": ("https://a",), "allowed_methods": ("POST",), "allowed_headers": ("X",)},
    ),
    (["--allow-credentials"], {"allow_credentials": True}),
    (
        ["--ssl-certfile", "c", "--ssl-keyfile", "k", "--ssl-ca-certs", "a", "--ssl-cert-reqs", "2"],
        {"ssl_certfile": "c", "ssl_keyfile": "k", "ssl_ca_certs": "a", "ssl_cert_reqs": 2},
    ),
    (["--ssl-keyfile-password", "p"], {"ssl_keyfile_password": "p"}),
    (["--root-path", "/ai"], {"root_path": "/ai"}),
    (["--fastapi-root-path", "/ai"], {"root_path": "/ai"}),
    (["--uds", "/tmp/socket"], {"uds": "/tmp/socket"}),
]


@pytest.mark.parametrize(("words", "fields"), FLAGS)
@pytest.mark.parametrize("program", ["serve", "launch_server"])
def test_both_commands_take_the_flags(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    program: str,
    words: list[str],
    fields: dict[str, Any],
) -> None:
    assert run(monkeypatch, program, *words) == 0
    assert started.launch is not None
    assert started.launch.door == Door(**fields)


@pytest.mark.parametrize("value", ["a", "{}", "[1]", '"*"'])
def test_a_list_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    value: str,
) -> None:
    assert run(monkeypatch, "serve", "--allowed-origins", value) == 2
    assert "JSON list of strings" in capsys.readouterr().err


def test_keys_come_from_flags_a_file_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RERANKD_API_KEY", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "another-program's")
    assert Door().keys() == ()
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv("RERANKD_API_KEY", "env")
    assert Door(api_keys=("flag",), api_key_file=str(file)).keys() == ("flag", "env", "one", "two")


def test_a_key_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RERANKD_API_KEY", raising=False)
    (tmp_path / "empty").write_text("\n")
    for door in (
        Door(api_keys=("",)),
        Door(api_keys=("ä",)),
        Door(api_key_file=str(tmp_path / "empty")),
        Door(api_key_file=str(tmp_path / "missing")),
    ):
        with pytest.raises(DoorError):
            door.keys()
    monkeypatch.setenv("RERANKD_API_KEY", "")
    with pytest.raises(DoorError, match="RERANKD_API_KEY"):
        Door().keys()


def test_what_does_not_fit_together_is_refused() -> None:
    for door in (Door(allow_credentials=True), Door(allow_credentials=True, allowed_origins=("*",))):
        with pytest.raises(DoorError, match="--allow"):
            door.cors()
    for door in (Door(ssl_keyfile="k"), Door(ssl_ca_certs="a"), Door(ssl_cert_reqs=2)):
        with pytest.raises(DoorError, match="--ssl-certfile"):
            door.tls()
    assert Door().cors() is None
    assert Door().tls() is None
    assert Door(allowed_origins=("a",), allow_credentials=True).cors() == Cors(("a",), credentials=True)
    assert Door(ssl_certfile="c", ssl_cert_reqs=2).tls() == Tls("c", client_certificates=2)


def test_https_with_keys(tmp_path: Path, minilm_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    flags = ("--ssl-certfile", str(tmp_path / "server.pem"), "--api-key", "k")
    with launched(SERVE, str(minilm_path), *flags) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert "k" not in server.said.partition("Authorization: Bearer ")[2].split("'")[0]
        url, ca = f"{server.url}/v1/rerank", str(tmp_path / "ca.pem")
        assert requests.post(url, json=BODY, verify=ca, timeout=30).status_code == 401
        headers = {"Authorization": "Bearer k"}
        assert requests.post(url, json=BODY, headers=headers, verify=ca, timeout=30).status_code == 200
        plain = server.url.replace("https", "http")
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{plain}/health", timeout=30)


def test_a_certificate_that_cannot_be_read_is_one_line(tmp_path: Path, minilm_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("bad.pem", "missing.pem"):
        with (
            pytest.raises(AssertionError, match=r"rerankd: error: HTTPS cannot be served") as failed,
            launched(SERVE, str(minilm_path), "--ssl-certfile", str(tmp_path / name)),
        ):
            pass
        assert "Traceback" not in str(failed.value)


class Unix(http.client.HTTPConnection):
    """A connection over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def test_a_unix_socket(tmp_path: Path, minilm_path: Path) -> None:
    path = tmp_path / "s"
    bind_unix(str(path)).close()  # left over by a server that was killed
    # `launched` reads a URL from the ready line.
    import tests.server.launched as module

    process = module.start([*LAUNCH_SERVER, "--model-path", str(minilm_path), "--uds", str(path)])
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("Try: curl"):
                break
        assert f"is ready: unix:{path} " in said
        assert f"curl --unix-socket {path} http://localhost/v1/rerank" in said
        client = Unix(str(path))
        client.request("GET", "/health")
        assert client.getresponse().status == 200
        with pytest.raises(ListenError, match="already"):
            bind_unix(str(path))
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert not path.exists()


def test_what_is_no_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="already"):
        bind_unix(str(path))
    assert path.read_text() == "data"


def test_clients_certificates_can_be_required(tmp_path: Path, minilm_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    flags = ["--ssl-certfile", str(tmp_path / "server.pem"), "--ssl-ca-certs", str(tmp_path / "ca.pem")]
    with launched(SERVE, str(minilm_path), *flags, "--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED))) as server:
        url, ca = f"{server.url}/health", str(tmp_path / "ca.pem")
        with pytest.raises((requests.ConnectionError, requests.exceptions.SSLError)):
            requests.get(url, verify=ca, timeout=30)
        assert requests.get(url, verify=ca, cert=str(tmp_path / "client.pem"), timeout=30).status_code == 200

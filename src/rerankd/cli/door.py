"""Access to the server: keys, CORS, TLS, a path before all paths, a Unix socket."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankd.core import RerankdError

if TYPE_CHECKING:
    from rerankd.server.settings import Cors
    from rerankd.server.tls import Tls

KEY_VARIABLE = "RERANKD_API_KEY"


class DoorError(RerankdError):
    """Options or files that do not say who may call."""


@dataclass(frozen=True, slots=True)
class Door:
    """The options as they were given. `allowed_*` are lists as in vLLM's flags; no origins means no CORS."""

    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None
    protect_all: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    root_path: str = ""
    uds: str | None = None

    def guards(self) -> dict[str, Any]:
        """The fields of `Settings` that say who may call. Raises DoorError."""
        return {
            "keys": self.keys(),
            "cors": self.cors(),
            "protect_all": self.protect_all,
            "root_path": self.root_path.rstrip("/"),
        }

    def keys(self) -> tuple[str, ...]:
        """Every key that opens: of the flags, of the file (one a line) and of RERANKD_API_KEY. Raises DoorError.

        An empty key is an error: a variable that someone forgot to fill must not leave the door open.
        """
        keys = list(self.api_keys)
        if KEY_VARIABLE in os.environ:
            keys.append(os.environ[KEY_VARIABLE])
        if self.api_key_file is not None:
            keys += _lines(Path(self.api_key_file))
        for key in keys:
            if not key.strip():
                raise DoorError(
                    f"An API key is empty; fill or unset --api-key, {KEY_VARIABLE} and VLLM_API_KEY, whichever is set."
                )
            if not key.isascii():
                raise DoorError("An API key has a character that is not ASCII; no HTTP header can carry it.")
        return tuple(key.strip() for key in keys)

    def cors(self) -> Cors | None:
        """The permissions for pages of other origins; None for none. Raises DoorError."""
        if not self.allowed_origins:
            if self.allow_credentials:
                raise DoorError("--allow-credentials needs --allowed-origins, which names the pages that may call.")
            return None
        from rerankd.server.settings import Cors

        if self.allow_credentials and "*" in self.allowed_origins:
            raise DoorError(
                "--allow-credentials lets any page act for its user when --allowed-origins is *; name them."
            )
        return Cors(self.allowed_origins, self.allowed_methods, self.allowed_headers, self.allow_credentials)

    def tls(self) -> Tls | None:
        """The certificate to serve with; None for plain HTTP. Raises DoorError."""
        if self.ssl_certfile is None:
            if self.ssl_keyfile or self.ssl_ca_certs or self.ssl_cert_reqs:
                raise DoorError("The --ssl flags need --ssl-certfile, the server's certificate.")
            return None
        from rerankd.server.tls import Tls

        return Tls(
            self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password, self.ssl_ca_certs, self.ssl_cert_reqs
        )


def _lines(path: Path) -> list[str]:
    try:
        keys = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DoorError(f"--api-key-file {path} cannot be read: {error}.") from None
    if not keys:
        raise DoorError(f"--api-key-file {path} holds no key.")
    return keys

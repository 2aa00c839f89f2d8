"""The playground's page, the facts of the server that it reads, and the page at the root that leads to it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Served
from rerankd.server.hosted import Hosted
from rerankd.version import __version__

INDEX_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PATH = "/playground"
PAGES = frozenset({"/", PATH})
"""Pages that hold nothing of the model: a browser that opens one sends no key."""


def add_playground(app: FastAPI, hosted: Sequence[Hosted], dialect: str, docs: bool, locked: bool) -> None:
    """Add the page, and the route of the facts that it reads.

    dialect: the name of the dialect at the root
    docs: whether /docs is there
    locked: whether calls want a key
    """
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    index = _index(docs)
    headers = {"Content-Security-Policy": _policy(text), "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}

    @app.get(PATH, include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(text, headers=headers)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return HTMLResponse(index, headers={"Content-Security-Policy": INDEX_POLICY})

    @app.get(f"{PATH}/info", include_in_schema=False)
    async def info() -> dict[str, Any]:
        limits = hosted[0].served.limits
        models = [_facts(host.served) for host in hosted]
        return {
            **models[0],
            "models": models,
            "limits": {"documents": limits.documents, "characters": limits.characters},
            "dialects": list(DIALECTS),
            "dialect": dialect,
            "docs": docs,
            "locked": locked,
            "version": __version__,
        }


def _facts(served: Served) -> dict[str, Any]:
    """The facts of a model."""
    loaded = served.info
    return {
        "names": served.names,
        "architecture": loaded.architecture,
        "family": loaded.family,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "quantization": loaded.quantization,
        "max_model_len": loaded.max_model_len,
        "takes_instruction": loaded.takes_instruction,
        "supports_vision": loaded.supports_vision,
    }


def _index(docs: bool) -> str:
    """The page at the root. Its links are relative, so that they hold below a proxy's prefix too."""
    links = {
        "playground": "try the model in the browser",
        **({"docs": "every route, field and error"} if docs else {}),
        "v1/models": "the names that the model answers to",
        "health": "200 while the server takes requests",
        "metrics": "what the server has counted, for Prometheus",
    }
    items = "".join(f'<li><a href="{path}">/{path}</a> {description}</li>' for path, description in links.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        "<title>rerankd</title><style>body{font:1rem/1.7 system-ui,sans-serif;max-width:40rem;margin:3rem auto;"
        f"padding:0 1rem}}</style><h1>rerankd {__version__}</h1><ul>{items}</ul></html>"
    )


def _policy(page: str) -> str:
    """The page's permissions: its own script and style, images that are dropped on it, calls of this server."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data: https: http:; media-src data: https: http:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

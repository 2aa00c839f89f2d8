"""A real server, with a key, for real clients. The clients have a Python of their own: their pins and ours disagree.

`make test-clients` runs these tests; RERANKD_PYTHON is a Python that has rerankd, by default the one of .venv.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

KEY = "a-key-of-this-server"
QUERY = "What is the capital of the United States?"
DOCUMENTS = [
    "Carson City is the capital city of the American state of Nevada.",
    "Washington, D.C. is the capital of the United States.",
    "Bananas are yellow fruits.",
    "Capital punishment has existed in the United States since before it was a country.",
]


@contextmanager
def serving(said_last: str, *flags: str, **variables: str) -> Iterator[re.Match[str]]:
    """`rerankd serve` with its embedded model. said_last: a pattern of the line to wait for, whose match is given"""
    python = os.environ.get("RERANKD_PYTHON", str(Path(__file__).parents[2] / ".venv/bin/python"))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    environment.update(variables)
    with subprocess.Popen(
        [python, "-m", "rerankd", "serve", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if found := re.match(said_last, line):
                    yield found
                    break
            else:
                raise AssertionError(said)
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a server that wants KEY."""
    with serving(r"rerankd \S+ is ready: (http://\S+) ", RERANKD_API_KEY=KEY) as ready:
        yield ready[1]


@pytest.fixture(scope="session")
def grpc_address() -> Iterator[str]:
    """Host and port of a server's gRPC, which wants no key."""
    with serving(r"TEI's gRPC API: (\S+)", "--grpc-port", "0") as said:
        yield said[1]


@pytest.fixture(scope="session")
def expected(server: str) -> list[tuple[int, float]]:
    """(index, score) of DOCUMENTS, best first, as vLLM's own route has them."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"query": QUERY, "documents": DOCUMENTS}
    answer = requests.post(f"{server}/vllm/v1/rerank", json=body, headers=headers, timeout=60).json()
    ranked = [(one["index"], one["relevance_score"]) for one in answer["results"]]
    assert ranked[0][0] == 1
    assert ranked[0][1] > ranked[-1][1] + 0.2
    return ranked

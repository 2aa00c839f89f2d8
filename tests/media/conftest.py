"""What tests of images and videos share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.media.pictures import png
from tests.media.servers import Server, ok, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.answers["/a.png"] = ok(png())
        yield running

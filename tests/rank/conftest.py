"""What tests of ranking share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd import Reranker


@pytest.fixture(scope="module")
def reranker(bert_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(str(bert_checkpoint)) as loaded:
        yield loaded

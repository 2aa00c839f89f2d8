"""What tests of the benchmark share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from rerankd.bench.samples import load_tokenizer
from tests.bench.fake_server import Fake, serving
from tests.vocabularies import minilm_folder


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(str(minilm_folder()))

"""Every entry that is read, with values of every JSON type: a model of the same scores, or one line that names it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rerankd.backends.select import place
from rerankd.core import ModelError, PackedBatch, PackedGroup, Span
from rerankd.media.visual import ResizedVisual, VisionFormat
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import Config, read_config
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.registry import find_architecture
from tests.odd_checkpoints import APART, MAKERS, TOKENS, VISUAL

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 7, 10**9, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "64", "\n", [], [1], ["x"], ["no", "yes"], [None], [[]], {}, {"x": 1}, {"0": {"0": []}}, {"": None}),
]
FEW = [None, True, 0, -1, 7, 10**9, 0.5, math.nan, "64", [1], ["x"], {}, {"x": 1}]
"""For the models with many entries, which see an image."""
HUGE = (10**9, 2**31 - 1, 2**31, 2**62, 10**30)


def token_id(token: str) -> int:
    if token not in TOKENS:
        raise ModelError(f"The tokenizer has no token {token!r}.")
    return TOKENS[token]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in MAKERS}
    for name, folder in made.items():
        MAKERS[name](folder)
    return made


def load(config: Config) -> Model:
    folder = Path(config.source).parent
    _, architecture = find_architecture(config)
    assert architecture.positions(config) > 0
    recipe = architecture.recipes[0]
    if architecture.processed is not None:
        recipe = architecture.processed(config, recipe)
    weights = Weights(Checkpoint(folder), torch.device("cpu"), torch.float32)
    model = architecture.load(config, weights, token_id, place("cpu", "float32"), recipe)
    weights.finish()
    return model


def image(name: str) -> ResizedVisual:
    """A picture of 16 x 16 pixels, which has 4 tokens."""
    pixels = numpy.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=numpy.uint8)
    return ResizedVisual.of_image(pixels, VisionFormat(4, 1 if name == "nemotron_vl" else 2, 2))


def logits(model: Model, name: str) -> tuple[str, Tensor]:
    """What a model makes of two documents, of which the first has an image where it can, with what becomes of it."""
    ids = torch.arange(30, 52)
    if name in VISUAL:
        ids[7:11] = VISUAL[name]
    shared = name not in (*APART, "embedder")
    prefix = Span(0, 0) if name in APART else Span(0, 6)
    spans = (Span(prefix.stop, 12), Span(12, 22))
    starts = [(prefix, 0), *((span, prefix.stop if shared else 0) for span in spans)]
    positions = torch.cat([torch.arange(start, start + len(span)) for span, start in starts])
    batch = PackedBatch(ids, positions, None, (PackedGroup(prefix, spans),), (image(name),) if name in VISUAL else ())
    with torch.inference_mode():
        return model.head.activation, model(batch)


class Watched(dict[str, Any]):
    """A configuration that remembers which of its entries were asked for."""

    def __init__(self, entries: Mapping[str, Any], path: str, asked: set[str]) -> None:
        super().__init__(
            {
                key: Watched(value, f"{path}{key}.", asked) if isinstance(value, dict) else value
                for key, value in entries.items()
            }
        )
        self.path, self.asked = path, asked

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(self.path + key)
        return super().get(key, default)


ROTARY = [
    f"rope_parameters.{name}"
    for name in (
        *("rope_type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "mscale"),
        *("mscale_all_dim", "beta_fast", "beta_slow", "truncate", "low_freq_factor", "high_freq_factor"),
        *("partial_rotary_factor", "mrope_section"),
    )
]
"""Entries of rotary parameters, read from a copy."""
COPIED = {"jina_m0": ("text_config", "vision_config")}
"""Sections that are read from a copy as a whole."""


def keys(folder: Path, name: str) -> list[str]:
    """The entries that loading a checkpoint asks for, those of its sections with the section's name before a dot."""
    asked: set[str] = set()
    config = read_config(folder, {})
    load(Config(Watched(config.entries, "", asked), config.source))
    nested = {"qwen3_vl": "text_config.", "jina_m0": "text_config.", "nemotron_vl": "llm_config."}
    rotary = {
        "qwen3": ROTARY, "qwen3_classifier": ROTARY,
        **{owner: [section + key for key in ROTARY] for owner, section in nested.items()},
    }  # fmt: skip
    copied = [f"{section}.{key}" for section in COPIED.get(name, ()) for key in config.entries[section]]
    return sorted({key for key in asked if "rope_parameters." not in key} | {*copied, *rotary.get(name, ())})


def with_entry(config: Config, key: str, value: Any) -> dict[str, Any]:
    """The entries of a configuration with another value for one of them."""
    entries: dict[str, Any] = json.loads(json.dumps(dict(config.entries)))
    *path, last = key.split(".")
    below = entries
    for part in path:
        below = below[part]
    below[last] = value
    return entries


CHANGES = {
    "rms_norm_eps": (0, 0.5),
    "layer_norm_eps": (0, 0.5),
    "rope_theta": (7, 10**9),
    "pad_token_id": (0, 7),
    "is_decoder": (0,),
    "tie_word_embeddings": (),
    "deepstack_visual_indexes": ([1],),
    "temperature": (7, 10**9, 0.5, 1e300),
}
"""Values that mean another score, which is that of transformers too."""

RELATED = {
    "id2label": ("num_labels",),
    "rope_parameters": ("rope_theta",),
    "head_dim": ("num_attention_heads",),
    "num_attention_heads": ("head_dim",),
    "text_config": ("max_position_embeddings",),
    "vision_config": ("force_image_size",),
    "image_size": ("force_image_size",),
    "patch_size": ("image_size",),
}
"""What an entry that is missing leaves to another one, and what it must agree with."""


def expect(
    folder: Path, name: str, baseline: tuple[str, Tensor], entries: Mapping[str, Any], key: str, value: Any
) -> None:
    *_, section, last = ["", *key.split(".")]
    try:
        model = load(Config(entries, str(folder / "config.json")))
    except ModelError as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert "\n" not in said
        assert len(said) < 1000
        named = {f"`{last}`", f"`{section}`", f"({last})", *(f"`{other}`" for other in RELATED.get(last, ()))}
        assert any(name in said for name in named), said
        return
    activation, found = logits(model, name)
    same = activation == baseline[0] and torch.allclose(found, baseline[1], atol=1e-6)
    assert same or any(type(value) is type(one) and value == one for one in CHANGES.get(last, ())), (key, value)


@pytest.mark.parametrize("name", MAKERS)
def test_every_entry_with_values_of_every_type(folders: dict[str, Path], name: str) -> None:
    folder = folders[name]
    config = read_config(folder, {})
    baseline = logits(load(config), name)
    assert baseline[1].std() > 1e-3
    read = keys(folder, name)
    assert len(read) >= 15
    for key in read:
        for value in FEW if name in VISUAL else VALUES:
            expect(folder, name, baseline, with_entry(config, key, value), key, value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("name", MAKERS)
def test_overrides_of_any_form(folders: dict[str, Path], name: str, data: st.DataObject) -> None:
    folder = folders[name]
    key = data.draw(st.sampled_from([*KEYS, "nothing_reads_this"]))
    value = data.draw(JSON)
    override: Any = value
    for part in reversed(key.split(".")):
        override = {part: override}
    try:
        load(read_config(folder, override))
    except ModelError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    assert not said or key != "nothing_reads_this"


KEYS = [
    *("architectures", "model_type", "id2label", "num_labels", "problem_type", "sentence_transformers", "rope_scaling"),
    *("sbert_ce_default_activation_function", "classifier_from_token", "method", "is_original_qwen3_reranker"),
    *("rope_parameters", "rope_theta", "text_config", "vision_config", "hidden_size", "head_dim", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "pad_token_id", "tie_word_embeddings", "layer_norm_eps", "rms_norm_eps"),
    *("llm_config", "pooling", "temperature", "downsample_ratio", "select_layer", "force_image_size"),
    *(
        "prompt_template",
        "img_context_token_id",
        "llm_config.architectures",
        "vision_config.image_size",
        "vision_config.model_type",
    ),
    *("text_config.rope_scaling", "text_config.rope_parameters", "vision_config.depth", "rope_parameters.rope_type"),
    *("rope_parameters.rope_theta", "sentence_transformers.activation_fn", "id2label.0", "quantization_config"),
]


def test_the_entries_are_those_that_are_read(folders: dict[str, Path]) -> None:
    read = {key for name, folder in folders.items() for key in keys(folder, name)}
    assert {"text_config.hidden_size", "vision_config.num_heads", "problem_type", "quantization_config"} <= read
    assert {key for key in KEYS if "." not in key} - {"rope_scaling", "rope_theta", "rope_parameters"} <= read


SCRIPT = """
import json, resource, sys
from pathlib import Path
from tests.models.test_odd_configs import HUGE, keys, load, with_entry
from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config, read_config
folders = json.loads(sys.argv[1])
for name, folder in folders.items():
    load(read_config(Path(folder), {}))
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
tried = refused = 0
for name, folder in folders.items():
    config = read_config(Path(folder), {})
    for key in keys(Path(folder), name):
        for value in HUGE:
            tried += 1
            try:
                load(Config(with_entry(config, key, value), config.source))
            except ModelError:
                refused += 1
print(tried, refused)
"""


def test_huge_sizes_are_refused_before_anything_is_made_of_them(folders: dict[str, Path]) -> None:
    where = json.dumps({name: str(folder) for name, folder in folders.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, where], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    tried, refused = map(int, done.stdout.split())
    assert tried > refused > tried / 2

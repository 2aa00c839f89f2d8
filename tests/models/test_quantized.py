"""Quantised checkpoints give the numbers that their weights stand for; others are refused by name."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.backends.cpu.native import Kernels
from rerankd.cli.main import _rerankd
from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.quantized.source import Quantized, open_tensors, read_scheme
from rerankd.models.checkpoint.tensors import Checkpoint
from tests import checkpoints, decoder_checkpoints
from tests.conftest import MakeCheckpoint
from tests.quantized import AWQ, BNB, FORMS, FP8, GPTQ, PACKED, Form, compressed, group_config, quantise
from tests.texts import DOCUMENTS, QUERIES

GOLDEN = Path(__file__).parent / "golden" / "quantized.safetensors"
STATE = "weight.quant_state.bitsandbytes__nf4"


def written(folder: Path, entry: dict[str, Any], form: Form) -> Quantized:
    """The tensors of a folder with one module, `layers.0.up`."""
    save_file(
        {f"layers.0.up.{name}": part.contiguous() for name, part in form[0].items()}, folder / "model.safetensors"
    )
    found = open_tensors(folder, Config({"quantization_config": entry}, str(folder / "config.json")))
    assert isinstance(found, Quantized)
    return found


@settings(max_examples=5)
@given(outputs=st.integers(1, 5), inputs=st.integers(1, 5), rows_at_once=st.sampled_from([5, 512]), seed=st.integers(0))
@pytest.mark.parametrize("name", FORMS)
def test_weights_are_the_numbers_that_they_stand_for(
    tmp_path_factory: pytest.TempPathFactory, name: str, outputs: int, inputs: int, rows_at_once: int, seed: int
) -> None:
    entry, writer, said = FORMS[name]
    folder = tmp_path_factory.mktemp("model")
    weight = torch.randn(16 * outputs, 16 * inputs, generator=torch.Generator().manual_seed(seed % 2**32))
    form = writer(weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rerankd.models.checkpoint.quantized.source.ROWS_AT_ONCE", rows_at_once)
        tensors = written(folder, entry, form)
        assert tensors.names == {"layers.0.up.weight"}
        assert tensors.shape("layers.0.up.weight") == weight.shape
        found = tensors.read("layers.0.up.weight")
        part = tensors.read_part("layers.0.up.weight", slice(3, 14), slice(1, 11))
    torch.testing.assert_close(part, form[1][3:14, 1:11], rtol=1e-6, atol=1e-7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, form[1], rtol=1e-6, atol=1e-7)
    assert (found - weight).abs().max() < 0.9 * weight.abs().max()
    rows = [len(weight) - 1, 0]
    torch.testing.assert_close(tensors.read_rows("layers.0.up.weight", rows), form[1][rows], rtol=1e-6, atol=1e-7)
    assert tensors.description.startswith(f"1 weights are stored quantised ({said})")


def test_what_the_libraries_write_is_what_they_read() -> None:
    """See golden/quantized.py."""
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
    assert len(metadata) == 11
    for name, entry in metadata.items():
        scheme = read_scheme(Config({"quantization_config": json.loads(entry)}, "config.json"))
        assert scheme is not None
        found = Quantized(Golden(name), scheme).read(f"{name}.weight")
        torch.testing.assert_close(found, Golden(name).read(f"{name}.expected").float(), rtol=8e-3, atol=1e-3)


class Golden(Checkpoint):
    """One case of the golden file."""

    def __init__(self, case: str) -> None:
        self.folder = GOLDEN.parent
        self._tensors = {name: value for name, value in load_file(GOLDEN).items() if name.startswith(f"{case}.")}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def quantised_copies(source: Path, tmp_path: Path, name: str, layers: str = "layers.") -> tuple[Path, Path]:
    """A checkpoint in a quantised form, and one of the numbers that its weights stand for."""
    entry, writer, _ = FORMS[name]
    quantised, plain = (Path(shutil.copytree(source, tmp_path / kind)) for kind in ("quantised", "plain"))
    assert quantise(quantised, entry, writer, plain, layers) > 10
    return quantised, plain


def scores(folder: Path, **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", **{"dtype": "float32", **options}) as reranker:
        return [one.score for one in reranker.rerank(QUERIES[0], DOCUMENTS[:8]).in_request_order()]


ENDS: list[tuple[Any, str, str]] = [
    *((checkpoints.bert, name, "layer.") for name in ("gptq in another order", "nf4, double", "float8 blocks")),
    (checkpoints.qwen3, "gptq", "layers."),
    (decoder_checkpoints.qwen2, "awq", "layers."),
    (checkpoints.qwen3_vl, "fp8 blocks", "language_model.layers."),
]


@pytest.mark.parametrize("end", ENDS, ids=[f"{one[0].__name__} {one[1]}" for one in ENDS])
def test_scores_are_those_of_the_dequantised_weights(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, end: tuple[Any, str, str]
) -> None:
    maker, name, layers = end
    quantised, plain = quantised_copies(make_checkpoint(maker), tmp_path, name, layers)
    # Only Qwen2's folder says nothing of its recipe.
    options = {"recipe": "mxbai-rerank"} if maker is decoder_checkpoints.qwen2 else {}
    with caplog.at_level("INFO", logger="rerankd"):
        found = scores(quantised, **options)
    assert found == scores(plain, **options)
    assert max(found) - min(found) > 0.02
    said = [record.getMessage() for record in caplog.records if "stored quantised" in record.getMessage()]
    assert len(said) == 1
    assert f" weights are stored quantised ({FORMS[name][2]})" in said[0]
    assert said[0].endswith(": they are dequantised to float32 as they are read.")


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}], ids=str)
def test_they_are_dequantised_to_what_the_engine_computes_in(
    bert_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "quantization" in options and Kernels.load(torch.float32) is None:
        pytest.skip("int8 needs the kernels")
    quantised, plain = quantised_copies(bert_checkpoint, tmp_path, "nf4, double", "layer.")
    found = scores(quantised, **options)
    assert found == scores(plain, **options) != scores(plain)
    assert max(found) - min(found) > 0.02


def test_one_weight_is_held_in_its_stored_form_at_a_time(
    qwen3_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that loading takes little more memory than the model and its largest weight."""
    quantised, _ = quantised_copies(qwen3_checkpoint, tmp_path, "gptq")
    read, stored = Checkpoint.read, {n.rpartition(".")[0] for n in Checkpoint(quantised).names if n.endswith("qweight")}
    alive: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    most = 0

    def watched(self: Checkpoint, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name)
        if name.rpartition(".")[0] in stored:
            alive.append((name.rpartition(".")[0], weakref.ref(tensor)))
        most = max(most, len({weight for weight, held in alive if held() is not None}))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", watched)
    scores(quantised)
    assert len(alive) > 3 * 10
    assert most == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"quant_method": name}, f"`quant_method` is '{name}'") for name in ("exl2", "hqq", "mxfp4", "torchao", "aqlm")),
    ({"bits": 4}, "`quant_method` is None"),
    (GPTQ | {"bits": 3}, "`bits` is 3"),
    (GPTQ | {"checkpoint_format": "marlin"}, "`checkpoint_format` must be gptq or gptq_v2"),
    (GPTQ | {"is_marlin_format": True}, "`is_marlin_format` is True"),
    (GPTQ | {"group_size": 0}, "`group_size` must be an integer from 1"),
    (AWQ | {"version": "gemv_fast"}, "`version` must be gemm or exllama"),
    (AWQ | {"bits": 8}, "`bits` is 8"),
    (PACKED | {"format": "marlin-24"}, "`format` is 'marlin-24'"),
    (PACKED | {"format": "nvfp4-pack-quantized"}, "`format` is 'nvfp4-pack-quantized'"),
    (PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "`sparsity_config` must be absent or dense"),
    (PACKED | {"transform_config": {"config_groups": {"u": {}}}}, "`transform_config` is"),
    (compressed("pack-quantized", group_config(3, "group")), "`num_bits` must be 4 or 8"),
    (compressed("float-quantized", group_config(4, "group", "float")), "`num_bits` must be 4 or 8 "),
    (compressed("float-quantized", group_config(8, "attn_head", "float")), "`strategy` must be"),
    (FP8 | {"weight_block_size": [128]}, "`weight_block_size` must be two sizes"),
    (BNB | {"bnb_4bit_quant_type": "af4"}, "`bnb_4bit_quant_type` is 'af4'"),
    (GPTQ, "but no weight is stored in that format"),
]


@pytest.mark.parametrize(("entry", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_read_is_refused_by_name(bert_checkpoint: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as raised:
        Reranker(bert_checkpoint, device="cpu", hf_overrides={"quantization_config": entry})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


Parts = dict[str, torch.Tensor]
DAMAGED: list[tuple[str, Callable[[Parts], object], str]] = [
    ("gptq", lambda parts: parts.update(g_idx=parts["g_idx"] + 5), "columns have groups 5 to 6 of 2"),
    ("gptq", lambda parts: parts.update(g_idx=parts["g_idx"] - 1), "columns have groups -1 to 0 of 2"),
    (
        "gptq",
        lambda parts: parts.update(scales=parts["scales"][:1]),
        "scales of shape [1, 16] and zero points",
    ),
    ("gptq", lambda parts: parts.update(qweight=parts["qweight"].long()), "packed as int64"),
    ("gptq", lambda parts: parts.pop("qzeros"), "no tensor `layers.0.up.qzeros`"),
    ("gptq", lambda parts: parts.update(qweight=parts["qweight"][0]), "but not in the format GPTQ"),
    ("packed", lambda parts: parts.update(weight_shape=torch.tensor([16, 99])), "do not hold the shape [16, 99]"),
    ("packed", lambda parts: parts.update(weight_scale=parts["weight_scale"][:7]), "7 scales for 16 rows"),
    ("fp8 blocks", lambda parts: parts.update(weight=parts["weight"].float()), "stored as float32"),
    ("fp8 blocks", lambda parts: parts.update(weight_scale_inv=torch.ones(3, 2, 1)), "for a matrix"),
    ("bitsandbytes of 8 bits", lambda parts: parts.update(weight_format=torch.tensor(1)), "`weight_format`"),
    ("bitsandbytes of 8 bits", lambda parts: parts.update(SCB=torch.ones(3)), "one scale for each row"),
    ("nf4", lambda parts: parts.update(weight=parts["weight"][:9]), "too few for the shape [16, 32]"),
    ("nf4", lambda parts: parts.update({"weight.absmax": parts["weight.absmax"].byte()}), "`nested_absmax` is missing"),
    ("nf4", lambda parts: parts.update({STATE: torch.tensor([1])}), "is not a JSON object"),
    ("nf4", lambda parts: parts.update({STATE: torch.tensor(list(b"{}"))}), "names no `shape`"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGED, ids=[f"{one[0]}: {one[2]}" for one in DAMAGED])
def test_parts_that_do_not_fit_each_other(
    tmp_path: Path, name: str, damage: Callable[[Parts], object], said: str
) -> None:
    entry, writer, _ = FORMS[name]
    parts, found = writer(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)))
    damage(parts)
    with pytest.raises(ModelError) as raised:
        written(tmp_path, entry, (parts, found)).read("layers.0.up.weight")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_eight_bit_weights_without_their_scales_are_no_numbers(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"stored as float8_e4m3fn, and config\.json has no `quantization_config`"):
        Reranker(folder, device="cpu")


def test_inspect_says_how_weights_are_stored(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = quantised_copies(bert_checkpoint, tmp_path, "awq", "layer.")[0]
    done = CliRunner().invoke(_rerankd(), ["inspect", str(folder), "--device", "cpu", "--dtype", "float32"])
    said = "AWQ, 4 bits, groups of 16; dequantised to float32 as they are read"
    assert f"weights:      {said}\n" in done.output
    assert "not understood" not in done.output


def test_a_bias_of_zeros_and_an_old_configuration_of_gptq(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder, plain = quantised_copies(bert_checkpoint, tmp_path, "gptq", "layer.")
    tensors = load_file(folder / "model.safetensors")
    extra = {"bert.encoder.layer.0.output.extra.bias": torch.zeros(4)}
    save_file(tensors | extra, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    entry = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({**entry, "quant_method": "gptq"}))
    assert scores(folder) == scores(plain)
    save_file(tensors | {name: part + 1 for name, part in extra.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for `bert\.encoder\.layer\.0\.output\.extra\.bias`"):
        scores(folder)

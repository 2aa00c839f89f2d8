"""Every backend runs every specification that it supports as the definition says, packed and pruned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rerankd.backends.base import Backend
from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.native.units import CAP
from rerankd.backends.select import place
from rerankd.backends.torch.backend import TorchBackend
from rerankd.core import ModelError, PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, separate_layout
from rerankd.layers.relative import Disentangled
from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Additions, Tokens
from tests.backends.cpu.units import UNITS, kernels_by
from tests.backends.dense import VOCABULARY, RandomWeights, dense_states, shapes

RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5)
BERT_LAYER = LayerSpec(
    hidden=64, heads=2, head_dim=32, mlp=128, norm=LAYER, placement="post", activation="gelu", causal=False,
    qkv_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip
QWEN_LAYER = LayerSpec(
    hidden=64, heads=4, kv_heads=2, head_dim=32, mlp=128, norm=RMS, placement="pre", activation="silu", gated=True,
    causal=True, qk_norm=RMS, rotary=Rotary.plain(32, 1e4),
)  # fmt: skip
VISION_LAYER = LayerSpec(
    hidden=64, heads=2, head_dim=32, mlp=128, norm=LAYER, placement="pre", activation="gelu_tanh", causal=False,
    rotary=Rotary.plain(32, 1e4), qkv_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip
MODERN_LAYER = replace(VISION_LAYER, activation="gelu", gated=True, qkv_bias=False, out_bias=False, mlp_bias=False)

BERT = TransformerSpec((BERT_LAYER,) * 3, embedding_norm=LAYER)
QWEN = TransformerSpec((QWEN_LAYER,) * 3, final_norm=RMS)
VISION = TransformerSpec((VISION_LAYER,) * 2)
SPECS = {
    "bert": BERT,
    "bert-gelu-tanh": shapes(BERT, activation="gelu_tanh"),
    "qwen3": QWEN,
    "qwen3-odd-heads": shapes(QWEN, head_dim=16, rotary=Rotary.plain(16, 1e4), heads=6, kv_heads=3),
    "qwen2": shapes(QWEN, qk_norm=None, qkv_bias=True),
    "vision": VISION,
    "qwen2-vision": shapes(VISION, activation="quick_gelu"),
    "bidirectional-llama": shapes(QWEN, qk_norm=None, causal=False),
    "modernbert": TransformerSpec(
        (
            replace(MODERN_LAYER, attention_norm=False),
            replace(MODERN_LAYER, window=3, rotary=Rotary.plain(32, 100.0)),
            replace(MODERN_LAYER, window=3, rotary=Rotary.plain(32, 100.0)),
            MODERN_LAYER,
        ),
        final_norm=LAYER,
        embedding_norm=LAYER,
    ),
    "gemma": replace(
        shapes(QWEN, qk_norm=None, activation="gelu_tanh", kv_heads=1, scale=0.3), embedding_scale=64**0.5
    ),
    "sliding-decoder": shapes(QWEN, window=4),
    "jina-bert": shapes(BERT, heads=4, head_dim=16, attention_bias="alibi", gated=True, mlp_bias=True),
    "deberta": shapes(BERT, attention_bias=Disentangled(8, 40), scale=0.1),
    "deberta-plain": shapes(BERT, attention_bias=Disentangled(5)),
    "new-bert": shapes(BERT, rotary=Rotary.plain(32, 1e4), gated=True),
    "partial-rotary": shapes(QWEN, rotary=Rotary.plain(16, 1e4)),
    "yarn-factor": shapes(QWEN, rotary=replace(Rotary.plain(32, 1e4), factor=1.3)),
    "relu": shapes(BERT, activation="relu"),
    "post-norm-decoder": shapes(BERT, causal=True),
}
BY_KERNELS = {
    "bert",
    "bert-gelu-tanh",
    "qwen3",
    "qwen3-odd-heads",
    "qwen2",
    "vision",
    "qwen2-vision",
    "bidirectional-llama",
    "yarn-factor",
}
GROUPS = [(5, (3, 1, 9)), (0, (4,)), (2, (6, 6))]
"""Lengths of each group's prefix and suffixes."""
NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.03}


class Packed:
    """Groups of random tokens, laid out as a specification reads them, and each sequence by itself."""

    def __init__(self, causal: bool) -> None:
        generator = torch.Generator().manual_seed(7)
        groups: list[PackedGroup] = []
        positions: list[int] = []
        self.sequences: list[tuple[list[int], range]] = []
        self.ids: list[int] = []
        for prefix, suffixes in GROUPS:
            start = len(self.ids)
            self.ids += torch.randint(VOCABULARY, (prefix,), generator=generator).tolist()
            positions += range(prefix)
            shared = self.ids[start:]
            spans = []
            for length in suffixes:
                own: list[int] = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
                spans.append(Span(len(self.ids), len(self.ids) + length))
                self.ids += own
                first = prefix if causal else 0
                positions += range(first, first + length)
                self.sequences.append((shared + own if causal else own, range(spans[-1].start, spans[-1].stop)))
            if prefix and not causal:
                self.sequences.append((shared, range(start, start + prefix)))
            groups.append(PackedGroup(Span(start, start + prefix), tuple(spans)))
        separate = [span for group in groups for span in (group.prefix, *group.suffixes) if len(span)]
        self.layout: AttentionLayout = causal_layout(groups) if causal else separate_layout(separate)
        self.groups = tuple(groups)
        self.tokens = Tokens(torch.tensor(self.ids), torch.tensor(positions))

    def expected(self, spec: TransformerSpec, weights: RandomWeights) -> dict[int, Tensor]:
        """The states of every document's rows, by row."""
        return {
            row: state
            for ids, rows in self.sequences
            for row, state in zip(rows, dense_states(spec, weights, ids)[-len(rows) :], strict=True)
        }


def backends(dtype: torch.dtype) -> list[Backend]:
    return [TorchBackend(torch.device("cpu"), dtype), CpuBackend(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_backends_run_specifications_as_defined(name: str, dtype: torch.dtype) -> None:
    spec, packed = SPECS[name], Packed(SPECS[name].causal)
    weights = RandomWeights(spec, dtype, positioned=spec.layers[0].rotary is None)
    expected = packed.expected(spec, weights)
    ran = []
    for backend in backends(dtype):
        if backend.supports(spec) is not None:
            continue
        ran.append(backend.name)
        transformer = backend.transformer(spec, weights)
        rotated = any(layer.rotary is not None for layer in spec.layers)
        positions = packed.tokens.positions if rotated else None
        whole = transformer(packed.tokens, packed.layout, positions)
        assert whole.dtype == torch.float32
        for keep in (
            None,
            [6, 7, 17, 20, 25],
            [max(rows) for _, rows in sorted(packed.sequences, key=lambda s: s[1][0])],
        ):
            states = whole if keep is None else transformer(packed.tokens, packed.layout, positions, keep)
            rows = sorted(expected) if keep is None else keep
            found = states[rows] if keep is None else states
            wanted = torch.stack([expected[row] for row in rows])
            assert wanted.std() > 0.5  # states that differ
            error = (found.double() - wanted).abs().max() / wanted.abs().max()
            assert error < NEAR[dtype], (backend.name, keep, error)
        # The input may come as a tensor, as that of a model with images does.
        given = transformer.embed(packed.tokens)
        again = transformer(given, packed.layout, positions)
        near = 1e-5 if dtype == torch.float32 or spec.layers[0].placement == "pre" else 0.05
        torch.testing.assert_close(again, whole, rtol=near, atol=near * 10)
    assert ran == ["torch", *(["cpu"] if name in BY_KERNELS else [])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_additions_reach_the_layers_behind(dtype: torch.dtype) -> None:
    packed, weights = Packed(causal=True), RandomWeights(QWEN, dtype)
    rows = torch.tensor([1, 3, 9])
    additions = Additions(rows, [torch.ones(3, 64), torch.full((3, 64), -0.5)])
    results = []
    for backend in backends(dtype):
        transformer = backend.transformer(QWEN, weights)
        plain = transformer(packed.tokens, packed.layout, packed.tokens.positions)
        added = transformer(packed.tokens, packed.layout, packed.tokens.positions, None, additions)
        assert (added - plain)[4:9].abs().max() > 0.1  # rows behind the changed ones, in the same group
        torch.testing.assert_close(added[20:], plain[20:])  # another group
        results.append(added)
    torch.testing.assert_close(results[0], results[1], rtol=NEAR[dtype] * 3, atol=NEAR[dtype] * 3)


def test_what_a_chosen_backend_lacks_is_named() -> None:
    spec = SPECS["deberta"]
    with pytest.raises(ModelError, match="backend cpu does not support disentangled attention"):
        place("cpu", "float32", backend="cpu").transformer(spec, RandomWeights(spec))


def test_a_chosen_backend_alone_runs_the_model() -> None:
    assert place("cpu", "float32", backend="torch").transformer(QWEN, RandomWeights(QWEN)).__class__.__name__ == (
        "TorchTransformer"
    )
    windowed = SPECS["modernbert"]
    place("cpu", "float32").transformer(windowed, RandomWeights(windowed))
    with pytest.raises(ModelError, match="cpu does not support"):
        place("cpu", "float32", backend="cpu").transformer(windowed, RandomWeights(windowed))
    with pytest.raises(ModelError, match="backend cuda does not run on the device cpu"):
        place("cpu", "float32", backend="cuda")
    with pytest.raises(ModelError, match="choose auto, torch, cpu, cuda"):
        place("cpu", "float32", backend="abacus")


def test_8_bits_are_refused_where_no_backend_has_them() -> None:
    windowed = SPECS["modernbert"]
    with pytest.raises(ModelError, match="cpu does not support"):
        place("cpu", "float32", "int8").transformer(windowed, RandomWeights(windowed))


@pytest.mark.parametrize("unit", UNITS)
def test_int8_lies_near_the_exact_states(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_by(unit)  # or the test is skipped
    monkeypatch.setenv(CAP, unit)
    dtype = UNITS[unit].dtype
    for spec in (BERT, QWEN, VISION):
        packed, weights = Packed(spec.causal), RandomWeights(spec, dtype, positioned=spec is BERT)
        positions = None if spec is BERT else packed.tokens.positions
        exact = CpuBackend(dtype).transformer(spec, weights)(packed.tokens, packed.layout, positions)
        rough = CpuBackend(dtype, "int8").transformer(spec, weights)(packed.tokens, packed.layout, positions)
        difference = (exact - rough).abs()
        assert 0 < difference.mean() < 0.05 * exact.abs().mean()

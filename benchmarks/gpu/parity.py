"""The device's arithmetic against float64 and float32."""

from __future__ import annotations

from typing import Any

import torch
from tests.backends.dense import RandomWeights
from tests.backends.test_transformers import SPECS, Packed

from benchmarks.gpu.timing import Bench
from rerankd.backends.select import place
from rerankd.backends.torch.reference import reference_attention
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import causal_layout, kept_layout, separate_layout


def specifications(bench: Bench) -> None:
    """Every specification of the tests, packed, shared, pruned, recorded or not, against float64."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        backend = place(str(bench.device), str(dtype).removeprefix("torch.")).backends[0]
        if backend.dtype != dtype:
            continue
        errors = {}
        for name, spec in list(SPECS.items())[: 2 if bench.small else None if dtype == torch.bfloat16 else 3]:
            if backend.supports(spec) is not None:
                continue
            packed = Packed(spec.causal)
            weights = RandomWeights(spec, dtype, positioned=spec.layers[0].rotary is None)
            expected = packed.expected(spec, weights)
            transformer = backend.transformer(spec, _On(weights, bench.device))
            tokens = type(packed.tokens)(
                packed.tokens.ids.to(bench.device), packed.tokens.positions.to(bench.device), None
            )
            rotated = any(layer.rotary is not None for layer in spec.layers)
            positions = tokens.positions if rotated else None
            found = []
            for keep in (None, [6, 7, 17, 20, 25]):
                for x in (tokens, transformer.embed(tokens)):
                    states = transformer(x, packed.layout, positions, keep).cpu()
                    rows = sorted(expected) if keep is None else keep
                    wanted = torch.stack([expected[row] for row in rows])
                    states = states[rows] if keep is None else states
                    found.append(((states.double() - wanted).abs().max() / wanted.abs().max()).item())
            errors[name] = float(f"{max(found):.3g}")
        bench.tell(step="parity", dtype=str(dtype), worst=max(errors.values()), errors=errors)


class _On:
    """Weights on a device."""

    def __init__(self, weights: RandomWeights, device: torch.device) -> None:
        self._weights, self._device = weights, device

    def _there(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._device)
        if isinstance(value, tuple):  # Affine
            return type(value)(*(self._there(part) for part in value))
        if value is None:
            return None
        return type(value)(**{name: self._there(getattr(value, name)) for name in value.__dataclass_fields__})

    @property
    def embedding(self) -> Any:
        return self._there(self._weights.embedding)

    @property
    def final_norm(self) -> Any:
        return self._there(self._weights.final_norm)

    def layers(self) -> Any:
        return (self._there(layer) for layer in self._weights.layers())


def attention(bench: Bench) -> None:
    """Attention alone at the sizes of real heads, over documents long and short, against float32."""
    from rerankd.backends.cuda.flash import flash_attention
    from rerankd.backends.cuda.tiles import Tiling

    lengths = (95, 3, 60, 17, 0, 33, 40, 1, 7) if bench.small else (95, 3, 170, 17, 700, 0, 1500, 33, 40, 1, 7, 300)
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row, row + length))
        row += length
    causal = causal_layout([PackedGroup(spans[0], tuple(spans[1:5])), PackedGroup(spans[5], tuple(spans[6:]))])
    separate = separate_layout([span for span in spans if len(span)])
    kept = [spans[1].stop - 1, spans[2].stop - 1, spans[-1].stop - 1]
    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    heads_of = ((4, 2, 32),) if bench.small else ((16, 8, 128), (16, 16, 72))
    for heads, kv_heads, head_dim in heads_of:
        q, k, v = (torch.randn(row, n, head_dim).to(dtype) for n in (heads, kv_heads, kv_heads))
        for kind, layout, rows in (
            ("causal", causal, None), ("separate", separate, None), ("kept", kept_layout(causal, kept), kept),
        ):  # fmt: skip
            asked = q if rows is None else q[rows]
            for window in (None, 64):
                expected = reference_attention(asked.float(), k.float(), v.float(), layout, head_dim**-0.5, window)
                on_device = (x.to(bench.device) for x in (asked, k, v))
                tiles = layout.derived(Tiling(bench.device))
                found = flash_attention(*on_device, tiles, head_dim**-0.5, window, None).float().cpu()
                error = (found - expected).abs().max().item()
                bench.tell(step="attention", kind=kind, heads=[heads, kv_heads, head_dim], window=window, error=error)

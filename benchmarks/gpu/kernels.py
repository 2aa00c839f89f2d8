"""What the machine reaches, and variants of single kernels at the sizes of real models."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.batches import PREFIX, SUFFIX
from benchmarks.gpu.timing import Bench
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, separate_layout


def limits(bench: Bench) -> None:
    """The rate of a large GEMM, of GEMMs of models' sizes, and of a copy."""
    if bench.device.type != "cuda":
        bench.rates["bfloat16"] = 0.05
        return
    for name, rows, inputs, outputs in (
        ("bfloat16", 8192, 8192, 8192), ("0.6b qkv", 32768, 1024, 4096), ("0.6b up", 32768, 1024, 6144),
        ("0.6b down", 32768, 3072, 1024), ("m3 up", 32768, 1024, 4096), ("minilm up", 32768, 384, 1536),
        ("8b up", 32768, 4096, 24576), ("8b down", 32768, 12288, 4096),
    ):  # fmt: skip
        x = torch.randn(rows, inputs, device=bench.device, dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device=bench.device, dtype=torch.bfloat16)
        bench.rates[name] = 2 * rows * inputs * outputs / bench.each(lambda: F.linear(x, weight)) / 1e12  # noqa: B023
    x = torch.empty(1 << 30, device=bench.device, dtype=torch.uint8)
    y = torch.empty_like(x)
    bench.tell(
        step="limits", tflops={name: round(rate) for name, rate in bench.rates.items()},
        copy_tb=round(2 * x.nbytes / bench.each(lambda: y.copy_(x)) / 1e12, 2),
    )  # fmt: skip


def layouts(documents: int, causal: bool) -> tuple[AttentionLayout, int]:
    if causal:
        prefix = Span(0, PREFIX)
        spans = [Span(PREFIX + i * SUFFIX, PREFIX + (i + 1) * SUFFIX) for i in range(documents)]
        return causal_layout([PackedGroup(prefix, tuple(spans))]), spans[-1].stop
    length = PREFIX + SUFFIX
    spans = [Span(i * length, (i + 1) * length) for i in range(documents)]
    return separate_layout(spans), spans[-1].stop


def variants(bench: Bench) -> None:
    """Attention by tiles of several sizes and by torch's two calls; fused and separate GELU; norms."""
    if bench.device.type != "cuda":
        return
    import rerankd.backends.cuda.flash as flash
    from rerankd.backends.cuda.attention import varlen_attention
    from rerankd.backends.cuda.kernels import add_norm, gated, norm_rope, norm_sum
    from rerankd.backends.cuda.tiles import HostTiles
    from rerankd.layers.rotary import Rotation
    from rerankd.layers.spec import Affine, Norm

    for name, heads, kv_heads, head_dim, causal in (
        ("0.6b", 16, 8, 128, True), ("m3", 16, 16, 64, False), ("minilm", 12, 12, 32, False),
    ):  # fmt: skip
        layout, rows = layouts(120, causal)
        qkv = torch.randn(rows, (heads + 2 * kv_heads) * head_dim, device=bench.device, dtype=torch.bfloat16)
        q, k, v = (
            part.unflatten(1, (-1, head_dim))
            for part in qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], 1)
        )
        times = {}
        for queries, keys, warps, stages in (
            (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2),
            (128, 32, 8, 3),
        ):  # fmt: skip
            host = HostTiles.of(layout, queries)
            tiles = host.on(torch.from_numpy(host.values).to(bench.device))
            setting = f"{queries}x{keys} w{warps} s{stages}"
            launch = partial(flash.launch, q, k, v, tiles, head_dim**-0.5, None, None, keys, warps, stages)
            try:
                times[setting] = round(bench.each(launch, 10) * 1e6)
            except Exception as error:
                times[setting] = type(error).__name__
        try:
            plain = [part.contiguous() for part in (q, k, v)]
            times["varlen"] = round(bench.each(lambda: varlen_attention(*plain, layout, head_dim**-0.5), 10) * 1e6)  # noqa: B023
        except Exception as error:
            times["varlen"] = repr(error)[:200]
        bench.tell(step="kernels", attention=name, rows=rows, microseconds=times)
    rows = 32768
    for width, mlp in ((1024, 4096), (384, 1536), (4096, 12288)):
        x, delta = (torch.randn(rows, width, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        inner = torch.randn(rows, mlp, device=bench.device, dtype=torch.bfloat16)
        both = torch.randn(rows, 2 * mlp, device=bench.device, dtype=torch.bfloat16)
        up = torch.randn(mlp, width, device=bench.device, dtype=torch.bfloat16)
        bias = torch.randn(mlp, device=bench.device, dtype=torch.bfloat16)
        weight = Affine(torch.ones(width, device=bench.device), torch.zeros(width, device=bench.device))
        rms, layer = Norm("rms", 1e-6), Norm("layer", 1e-6)
        states = x.float()
        found = {
            "add_norm": lambda: add_norm(x, delta, rms, weight, torch.bfloat16),  # noqa: B023
            "norm_sum": lambda: norm_sum(x, delta, layer, weight, torch.bfloat16),  # noqa: B023
            "norm_sum float32": lambda: norm_sum(states, delta, layer, weight, torch.bfloat16),  # noqa: B023
            "gelu": lambda: F.gelu(inner),  # noqa: B023
            "gated": lambda: gated(both, "silu"),  # noqa: B023
            "up": lambda: F.linear(x, up, bias),  # noqa: B023
            "up+gelu fused": lambda: torch._addmm_activation(bias, x, up.t(), use_gelu=True),  # noqa: B023
        }
        times = {name: round(bench.each(run) * 1e6) for name, run in found.items()}
        bench.tell(step="kernels", width=width, rows=rows, microseconds=times)
    x = torch.randn(rows, 4096, device=bench.device, dtype=torch.bfloat16)
    angles = torch.randn(rows, 1, 64, device=bench.device)
    norm = Affine(torch.ones(128, device=bench.device))
    seconds = bench.each(lambda: norm_rope(x, 16, 128, Rotation(angles, angles), Norm("rms", 1e-6), norm))
    bench.tell(step="kernels", norm_rope=round(seconds * 1e6), rows=rows)

"""Parity and speed of a device, without tokenizers, checkpoints or a network: random weights, random token ids.

usage: python -m benchmarks.gpu.check [--device cuda] [--dtype bfloat16] [--small] [--output FILE]

It needs torch, transformers, safetensors and numpy. Each step prints its line at once, so that a run that is cut short
has told what it found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from rerankd.backends.select import Placement, place
from rerankd.core import PackedBatch, PromptGroup, Segment, Span
from rerankd.engine.packing import pack
from rerankd.layers.layout import causal_layout, separate_layout
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import read_config
from rerankd.models.checkpoint.weights import Checkpoint, Weights
from rerankd.models.registry import find_architecture

PREFIX, SUFFIX = 95, 170
"""Tokens of the typical pair: template, instruction and query, then the document and the template's tail."""
DOCUMENTS = (10, 100, 400)
Shape = tuple[str, str, Callable[[], Any]]


def qwen3(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> Any:
    return transformers.Qwen3Config(
        vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=mlp, max_position_embeddings=40960,
        tie_word_embeddings=True,
    )  # fmt: skip


def roberta(hidden: int, layers: int, heads: int, mlp: int) -> Any:
    return transformers.XLMRobertaConfig(
        vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=mlp, max_position_embeddings=8194, type_vocab_size=1, num_labels=1,
    )  # fmt: skip


SMALL: list[Shape] = [
    ("qwen3-small", "Qwen3ForCausalLM", lambda: qwen3(256, 4, 4, 2, 64, 512)),
    ("roberta-small", "XLMRobertaForSequenceClassification", lambda: roberta(256, 4, 4, 512)),
]
FULL: list[Shape] = [
    ("qwen3-0.6b", "Qwen3ForCausalLM", lambda: qwen3(1024, 28, 16, 8, 128, 3072)),
    ("bge-v2-m3", "XLMRobertaForSequenceClassification", lambda: roberta(1024, 24, 16, 4096)),
    ("minilm-l6", "XLMRobertaForSequenceClassification", lambda: roberta(384, 6, 12, 1536)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--small", action="store_true", help="Small shapes alone, to try the script itself.")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    figures: list[dict[str, Any]] = []

    def tell(**figure: Any) -> None:
        figures.append(figure)
        print(json.dumps(figure), flush=True)
        if chosen.output:
            chosen.output.write_text(json.dumps(figures, indent=1))

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    tell(torch=torch.__version__, transformers=transformers.__version__, gpu=gpu)
    attention(chosen.device, chosen.dtype, tell)
    for name, architecture, config in SMALL if chosen.small else [*SMALL, *FULL]:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), architecture, config())
            measure(name, Path(folder), chosen.device, chosen.dtype, tell)


def attention(device: str, dtype: str, tell: Callable[..., None]) -> None:
    """The attention of the device against the dense reference in float32."""
    from rerankd.backends.torch.reference import reference_attention
    from rerankd.core import PackedGroup

    placement = place(device, dtype)
    backend: Any = placement.backends[0]
    if not hasattr(backend, "attention"):
        return
    spans, row = [], 0
    for length in (95, 3, 60, 17, 0, 33, 40, 1, 7):
        spans.append(Span(row, row + length))
        row += length
    groups = [
        PackedGroup(spans[0], tuple(spans[1:4])),
        PackedGroup(spans[4], (spans[5],)),
        PackedGroup(spans[6], (spans[7], spans[8])),
    ]
    for heads, kv_heads, head_dim in ((16, 8, 128), (12, 12, 32), (16, 16, 64)):
        q, k, v = (torch.randn(row, n, head_dim).to(placement.dtype) for n in (heads, kv_heads, kv_heads))
        for kind, layout in (
            ("causal", causal_layout(groups)),
            ("separate", separate_layout([s for s in spans if len(s)])),
        ):
            expected = reference_attention(q.float(), k.float(), v.float(), layout, head_dim**-0.5)
            found = backend.attention(*(x.to(device) for x in (q, k, v)), layout, head_dim**-0.5).float().cpu()
            tell(
                step="attention",
                kind=kind,
                heads=[heads, kv_heads, head_dim],
                error=(found - expected).abs().max().item(),
            )


def make(folder: Path, architecture: str, config: Any) -> None:
    """A checkpoint of random weights, wide enough that scores spread."""
    torch.manual_seed(0)
    config.architectures = [architecture]
    model = getattr(transformers, architecture)(config)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "embed" not in name:
            torch.nn.init.normal_(tensor, std=1.5 / tensor.shape[1] ** 0.5)
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    config.save_pretrained(folder)


def load(folder: Path, placement: Placement) -> Model:
    config = read_config(folder, {})
    _, architecture = find_architecture(config)
    weights = Weights(Checkpoint(folder), placement.device, placement.dtype)
    return architecture.load(config, weights, {"no": 100, "yes": 200}.__getitem__, placement)


def group(shares: bool, documents: int, seed: int = 0) -> PromptGroup:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(10, 32000, (count,), generator=generator).tolist()
        return found

    prefix = ids(PREFIX)
    own = [ids(SUFFIX) for _ in range(documents)]
    suffixes = [Segment(one) for one in own] if shares else [Segment(prefix + one) for one in own]
    return PromptGroup(Segment(prefix if shares else []), tuple(suffixes), (False,) * documents)


def measure(name: str, folder: Path, device: str, dtype: str, tell: Callable[..., None]) -> None:
    """Scores against float32 by plain tensors, then pairs a second."""
    placement = place(device, dtype)
    model = load(folder, placement)
    exact = load(folder, place("cpu", "float32", backend="torch"))

    def batch(one: Model, where: torch.device, documents: int) -> PackedBatch:
        return pack([group(model.shares_prefix, documents)], one.shares_prefix, where)

    with torch.inference_mode():
        expected = exact(batch(exact, torch.device("cpu"), 6)).sigmoid()
        found = model(batch(model, placement.device, 6)).sigmoid().float().cpu()
        tell(step="scores", model=name, spread=expected.std().item(), error=(found - expected).abs().max().item())
        del exact
        for documents in DOCUMENTS:
            packed = batch(model, placement.device, documents)
            model(packed).tolist()
            rounds = []
            until = time.perf_counter() + 3
            while len(rounds) < 3 or time.perf_counter() < until:
                start = time.perf_counter()
                model(batch(model, placement.device, documents)).tolist()
                rounds.append(time.perf_counter() - start)
            rounds.sort()
            best, middle = rounds[0], rounds[len(rounds) // 2]
            tell(
                step="speed",
                model=name,
                documents=documents,
                pairs_per_second=documents / middle,
                best=documents / best,
            )


if __name__ == "__main__":
    main()

"""Parity and speed of a device, without tokenizers, checkpoints or a network: random weights, random token ids.

usage: python -m benchmarks.gpu.check [--device cuda] [--small] [--steps parity,attention,speed,...] [--output FILE]

It needs torch, transformers, safetensors and numpy. Each step prints its lines at once, so that a run that is cut short
has told what it found.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu import kernels, models, parity, peers, seeing, serving
from benchmarks.gpu.timing import Bench

STEPS: dict[str, Callable[[Bench], None]] = {
    "limits": kernels.limits,
    "parity": parity.specifications,
    "attention": parity.attention,
    "scores": models.scores,
    "speed": models.speed,
    "profile": models.profile,
    "vision": seeing.vision,
    "fp8": models.fp8,
    "peers": peers.transformers_speed,
    "kernels": kernels.variants,
    "text": serving.text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="Small shapes alone, to try the script itself.")
    parser.add_argument("--steps", default=",".join(STEPS), help="Which steps to run, in this order.")
    parser.add_argument("--models", default="", help="Names of the shapes to measure; all without it.")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    figures: list[dict[str, Any]] = []
    began = time.perf_counter()

    def tell(**figure: Any) -> None:
        figures.append(figure)
        print(f"{time.perf_counter() - began:6.1f}", json.dumps(figure), flush=True)
        if chosen.output:
            chosen.output.write_text(json.dumps(figures, indent=1))

    device = torch.device(chosen.device)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    tell(torch=torch.__version__, transformers=transformers.__version__, gpu=gpu)
    bench = Bench(device, chosen.small, tell, [name for name in chosen.models.split(",") if name])
    for name in chosen.steps.split(","):
        try:
            with torch.inference_mode():
                STEPS[name](bench)
        except Exception as error:  # the steps behind it are worth having
            traceback.print_exc()
            tell(step=name, failed=repr(error)[:300])
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

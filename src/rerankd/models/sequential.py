"""A head of several steps over a pooled state: that of ModernBERT, and the modules of sentence-transformers' chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.layers.spec import Affine
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json, shown
from rerankd.models.checkpoint.modules import Module, pooling_of, read_modules
from rerankd.models.checkpoint.weights import Checkpoint, Weights
from rerankd.models.heads import BETWEEN, Activation, Pooling, means, one_logit
from rerankd.models.labels import declared_activation

Step: TypeAlias = Callable[[Tensor], Tensor]
LAYER_NORM_EPSILON = 1e-5
"""Of sentence-transformers' module LayerNorm, whose configuration has none."""
FUNCTIONS = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
"""Activations of sentence-transformers' module Dense, as keys of BETWEEN."""


@dataclass(frozen=True, slots=True)
class Linear:
    """f(x W^T + b) in float32; f is a key of BETWEEN, or None for nothing."""

    affine: Affine
    function: str | None = None

    def __call__(self, x: Tensor) -> Tensor:
        found = F.linear(x, *self.affine)
        return found if self.function is None else BETWEEN[self.function](found)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """LayerNorm in float32."""

    affine: Affine
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.affine, self.epsilon)


@dataclass(frozen=True, slots=True)
class SequentialHead:
    """Steps, one after the other, over the pooled states of each pair; the last gives 1 label or 2."""

    pooling: Pooling
    steps: Sequence[Step]
    activation: Activation

    def rows(self, batch: PackedBatch) -> list[int] | None:
        """The first token of each document where that is what is pooled, else all."""
        return [span.start for span in batch.documents()] if self.pooling == "cls" else None

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        x = states if self.pooling == "cls" else means(states, batch.documents())
        for step in self.steps:
            x = step(x)
        return one_logit(x)


def chain_head(config: Config, hidden: int, device: torch.device) -> SequentialHead:
    """The head that the modules behind a folder's transformer make; ModelError for modules that are not supported."""
    folder = Path(config.source).parent
    modules = read_modules(folder) or ()
    width, steps, source = hidden, list[Step](), "sentence_embedding"
    for module in modules[2:]:
        if source == "scores":
            raise ModelError(f"{module.folder} stands behind the module that gives the scores, which is not supported.")
        weights = Weights(Checkpoint(module.folder), device, torch.float32)
        if module.kind == "LayerNorm":
            own = Config(read_json(module.folder / "config.json"), str(module.folder / "config.json"))
            own.require("dimension", width)
            norm = Affine(weights.tensor("norm.weight", width), weights.tensor("norm.bias", width))
            steps.append(LayerNorm(norm, LAYER_NORM_EPSILON))
        else:
            step, width, source = _dense(module, weights, width)
            steps.append(step)
        weights.finish()
    if source != "scores" or width not in (1, 2):
        raise ModelError(
            f"{folder / 'modules.json'}: the last module gives {width} values as {shown(source)}; that of a reranker "
            "gives 1 or 2 as 'scores'."
        )
    return SequentialHead(pooling_of(modules[1]), steps, declared_activation(config, width))


def _dense(module: Module, weights: Weights, width: int) -> tuple[Linear, int, str]:
    path = module.folder / "config.json"
    config = Config(read_json(path), str(path))
    config.require("in_features", width)
    config.require("module_input_name", "sentence_embedding")
    outputs, name = config.size("out_features"), config.get("module_output_name", str, "sentence_embedding")
    function = config.get("activation_function", str, "torch.nn.modules.activation.Tanh")
    if function not in FUNCTIONS:
        raise config.wrong("activation_function", f"must be one of {', '.join(FUNCTIONS)}")
    affine = weights.affine("linear", outputs, width, config.flag("bias") is not False)
    return Linear(affine, FUNCTIONS[function]), outputs, name

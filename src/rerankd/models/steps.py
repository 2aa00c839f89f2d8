"""The steps behind pooled states, or behind each token's state: the modules of sentence-transformers' chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError
from rerankd.layers.spec import Affine
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json
from rerankd.models.checkpoint.modules import Module
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.heads import BETWEEN

Step: TypeAlias = Callable[[Tensor], Tensor]
SENTENCE, TOKENS, SCORES = "sentence_embedding", "token_embeddings", "scores"
"""The names of modules' inputs and outputs."""
LAYER_NORM_EPSILON = 1e-5
"""The epsilon of sentence-transformers' module LayerNorm, whose configuration has none."""
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
    """f(x W^T + b) in float32; f is a key of BETWEEN, or None for nothing.

    residual: a function of x whose result is added; None for no residual
    """

    affine: Affine
    function: str | None = None
    residual: Residual | None = None

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, *self.affine)
        y = y if self.function is None else BETWEEN[self.function](y)
        return y if self.residual is None else y + self.residual(x)


@dataclass(frozen=True, slots=True)
class Residual:
    """x, or x W^T where the widths differ."""

    weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.weight is None else F.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """LayerNorm in float32."""

    affine: Affine
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.affine, self.epsilon)


def normalize(x: Tensor) -> Tensor:
    """Each row at length 1."""
    return F.normalize(x, dim=-1)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps, one after the other.

    width, output: the width and the name of the last step's output
    """

    steps: Sequence[Step]
    width: int
    output: str

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def read_steps(modules: Sequence[Module], width: int, device: torch.device, reads: str = SENTENCE) -> Steps:
    """The steps that modules make over states of `width` values.

    reads: the name of the first module's input, and of its output where its configuration names no other

    Raises ModelError for modules that are not supported.
    """
    steps, output = list[Step](), reads
    for module in modules:
        if output == SCORES:
            raise ModelError(f"{module.folder} stands behind the module that gives the scores, which is not supported.")
        if module.kind == "Normalize":
            _expect_input(module, reads)
            steps.append(normalize)
            continue
        weights = Weights(Checkpoint(module.folder), device, torch.float32)
        if module.kind == "LayerNorm":
            _config(module).require("dimension", width)
            norm = Affine(weights.tensor("norm.weight", width), weights.tensor("norm.bias", width))
            steps.append(LayerNorm(norm, LAYER_NORM_EPSILON))
        else:
            step, width, output = _dense(module, weights, width, reads)
            steps.append(step)
        weights.finish()
    return Steps(steps, width, output)


def _dense(module: Module, weights: Weights, width: int, reads: str) -> tuple[Linear, int, str]:
    config = _config(module)
    config.require("in_features", width)
    _expect_input(module, reads)
    outputs, name = config.size("out_features"), config.entries.get("module_output_name") or reads
    if name not in (reads, SCORES):
        raise config.wrong("module_output_name", f"must be {reads} or {SCORES}")
    function = config.get("activation_function", str, "torch.nn.modules.activation.Tanh")
    if function not in FUNCTIONS:
        raise config.wrong("activation_function", f"must be one of {', '.join(FUNCTIONS)}")
    affine = weights.affine("linear", outputs, width, config.flag("bias") is not False)
    residual = None
    if config.flag("use_residual"):
        residual = Residual(None if outputs == width else weights.tensor("residual.weight", outputs, width))
    return Linear(affine, FUNCTIONS[function], residual), outputs, name


def _expect_input(module: Module, reads: str) -> None:
    if (module.folder / "config.json").is_file():
        _config(module).require("module_input_name", reads, None)


def _config(module: Module) -> Config:
    path = module.folder / "config.json"
    return Config(read_json(path), str(path))

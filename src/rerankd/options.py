"""The options of loading a model, and the description of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rerankd.core import MAX_CHARACTERS
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.media.sources import Access
from rerankd.models.checkpoint.hub import Hub


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load and run a model; only `model` has no default.

    model: a local folder, or an id on `hub`
    quantization: "int8" for 8-bit linear layers on a CPU, "fp8" for a decoder's on a CUDA device, None for `dtype`,
        "auto" for int8 where a CPU's kernels run the model, else `dtype`
    gpu_memory_utilization: share of a CUDA device's memory to use at most; None for all of it
    tensor_parallel_size: processes that compute the model together, each its part of every layer on a device of its own
    data_parallel_size: processes that each hold the whole model and share the requests out; None for as many as
        `device` names devices, separated by commas
    backend: "auto" for the fastest that supports the model; a name of `BACKENDS` for that one alone, to find faults
    num_threads: threads that compute on a CPU, of each replica; None for OMP_NUM_THREADS, else as many as cores and a
        quota allow, shared out among the replicas
    max_model_len: tokens in one prompt; None for the model's own limit
    max_characters: characters of one text (query, document or instruction) at most; a longer one is an error
    max_batch_tokens: tokens in one packed batch; None for the device's own choice
    engine_timeout: seconds that a batch may take, on a slow machine more, before the engine is given up; None for any
    max_queued_tokens: tokens that may wait to be computed before requests are refused with EngineBusy; None for any
    hf_overrides: entries laid over the checkpoint's config.json
    recipe: how the model is scored, by name (docs/models.md); None for what its folder says
    label: the label whose probability is the score, of a classifier of others than relevance (NLI); None for relevance
    cutoff_layers: after how many layers the score is read, of a layerwise reranker; None for all of them
    model_impl: "native" for rerankd's own implementation of the model, "transformers" for that package's, "auto" for
        the first where there is one
    trust_remote_code: whether code of the model's folder may run, by transformers alone
    chat_template: a Jinja file, or Jinja text, in place of the built-in template of a decoder
    default_instruction: for requests without an instruction; None for the model authors' own
    request_limits: what one request may hold and grow to; None for no bounds, as a caller has it who owns the machine
    media_access: what images and videos may be read from; a server narrows it, here the caller owns the machine
    media_limits: what they may cost
    media_sizing: how large a model is shown them: fields of `media.sizing.Sizing` in place of its authors' own
    """

    model: str
    revision: str | None = None
    hub: Hub = "huggingface"
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int | None = None
    backend: str = "auto"
    num_threads: int | None = None
    max_model_len: int | None = None
    max_characters: int = MAX_CHARACTERS
    max_batch_tokens: int | None = None
    engine_timeout: float | None = None
    max_queued_tokens: int | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    label: str | None = None
    cutoff_layers: int | None = None
    model_impl: str = "auto"
    trust_remote_code: bool = False
    chat_template: str | Path | None = None
    default_instruction: str | None = None
    request_limits: RequestLimits | None = None
    media_access: Access = Access(local_folders=None, allow_private=True)  # noqa: RUF009 - frozen
    media_limits: MediaLimits = MediaLimits()  # noqa: RUF009 - frozen
    media_sizing: Mapping[str, Any] = field(default_factory=dict)


LabelsActivation: TypeAlias = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model: for ready lines, `/v1/models` and metrics.

    backend: with the instruction set of its own kernels
    dimensions: values of an embedding; None for a model that gives none, and before it is loaded
    labels: the names of a classifier's labels in their order; empty for a model that is none, and before it is loaded
    labels_activation: what makes probabilities of their logits, as the model's folder has it
    """

    model: str
    path: Path
    architecture: str
    family: str
    device: str
    dtype: str
    max_model_len: int
    takes_instruction: bool
    supports_vision: bool = False
    quantization: str | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    backend: str = "torch"
    dimensions: int | None = None
    labels: tuple[str, ...] = ()
    labels_activation: LabelsActivation = "softmax"

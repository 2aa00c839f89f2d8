"""The options of loading a model, and the description of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rerankd.core import MAX_CHARACTERS
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.media.sources import Access
from rerankd.models.checkpoint.hub import Hub


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load and run a model. Only `model` has no default.

    model: a local folder, or an id on `hub`
    revision: branch, tag or commit on the hub; None for the default branch
    device: "auto", "cpu", "cuda", "npu", "xpu" or "mps", with an index or not; several, separated by commas, for a
        replica on each
    dtype: "auto", "bfloat16", "float32" or "float16"
    quantization: "int8" for 8-bit linear layers on a CPU, "fp8" for those of a decoder on a CUDA device, "auto" for
        int8 if a CPU's kernels run the model, None for no quantisation
    gpu_memory_utilization: the largest share of a CUDA device's memory, in (0, 1]; None for all of it
    tensor_parallel_size: the number of processes that compute the model together; each has a part of every layer, and a
        device
    data_parallel_size: the number of processes that each have the whole model and share the requests; None for one for
        each device in `device`
    backend: "auto" for the fastest backend that supports the model, or a name of `BACKENDS`, to find faults
    num_threads: the number of threads of each replica on a CPU; None for OMP_NUM_THREADS, else for the cores and the
        CPU quota of the process, divided among the replicas
    max_model_len: the most tokens of a prompt; None for the model's own limit
    max_characters: the most characters of a text (query, document or instruction); a longer text is an error
    max_batch_tokens: the most tokens of a packed batch; None for the default of the device
    engine_timeout: the seconds that a batch may take (on a slow machine more) before the engine is given up; None for
        no limit
    max_queued_tokens: the most tokens that may wait; a further request gets EngineBusy; None for no limit
    hf_overrides: entries that replace those of config.json
    recipe: the name of the recipe that scores the model (docs/models.md); None for the one found from the folder
    label: the label whose probability is the score, for a classifier of other labels (NLI); None for relevance
    cutoff_layers: the number of layers after which the score of a layerwise reranker is read; None for all
    model_impl: "native" for rerankd's own implementation of the model, "transformers" for that package's, "auto" for
        rerankd's own if there is one
    trust_remote_code: whether transformers may run code in the model's folder
    chat_template: a Jinja file, or Jinja text, in place of the built-in template of a decoder
    default_instruction: the instruction for requests without one; None for the model authors' own
    request_limits: limits on the size of one request; None for no limits
    media_access: the folders and addresses that images and videos may be read from; by default all, since the caller
        owns the machine; a server allows less
    media_limits: limits on the size and the cost of images and videos
    media_sizing: fields of `media.sizing.Sizing` that replace those of the model's authors
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


def load_options(model: str | Path | LoadOptions, options: Mapping[str, Any]) -> LoadOptions:
    """The options of loading a model, with other values for some. Raises TypeError for a name that is none of them."""
    names = [one.name for one in fields(LoadOptions)]
    for name in options:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            known = f"the nearest is {near[0]!r}" if near else f"the options are {', '.join(names)}"
            raise TypeError(f"There is no option {name!r}; {known}.")
    return replace(model, **options) if isinstance(model, LoadOptions) else LoadOptions(str(model), **options)


LabelsActivation: TypeAlias = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model: for ready lines, `/v1/models` and metrics.

    path: the folder with the model's files
    family: the kind of scoring, such as "decoder" or "cross-encoder"
    max_model_len: the most tokens of a prompt
    backend: its name, with the instruction set of its kernels
    dimensions: the number of values of an embedding; None for a model without embeddings, and before it is loaded
    labels: the names of a classifier's labels in their order; empty for other models, and before it is loaded
    labels_activation: the function from their logits to probabilities, as the model's folder declares it
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

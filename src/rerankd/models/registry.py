"""Which architectures are served, and what else must be known of each before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd.core import Family, ModelError
from rerankd.layers.transformer import Executor
from rerankd.models.base import Model, TokenIds
from rerankd.models.bert import bert_bi_encoder, bert_cross_encoder
from rerankd.models.checkpoint.config import Config, shown
from rerankd.models.checkpoint.modules import expect_modules
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.qwen3 import qwen3_reranker
from rerankd.models.qwen3_vl import qwen3_vl_reranker
from rerankd.models.roberta import first_position, roberta_bi_encoder, roberta_cross_encoder


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to load a model of an architecture, how it scores, and how its prompts are made.

    template: the built-in prompt template of a decoder
    positions: how many tokens a prompt may have by the model's own positions
    model_types: what config.json may call its `model_type`
    sees: whether it takes images and videos, as its `vision_config` says
    """

    family: Family
    load: Callable[[Config, Weights, TokenIds, Executor], Model]
    positions: Callable[[Config], int]
    model_types: tuple[str, ...]
    template: Literal["qwen3", "qwen3_vl"] | None = None
    sees: bool = False


def _plain_positions(config: Config) -> int:
    return config.size("max_position_embeddings")


def _roberta_positions(config: Config) -> int:
    return _plain_positions(config) - first_position(config)


def _text_positions(config: Config) -> int:
    return _plain_positions(config.section("text_config"))


BERT, ROBERTA = ("bert",), ("roberta", "xlm-roberta")
_QWEN3_VL = Architecture("decoder", qwen3_vl_reranker, _text_positions, ("qwen3_vl",), template="qwen3_vl", sees=True)
_QWEN3 = Architecture("decoder", qwen3_reranker, _plain_positions, ("qwen3",), template="qwen3")
_ROBERTA = Architecture("cross-encoder", roberta_cross_encoder, _roberta_positions, ROBERTA)

ARCHITECTURES = {
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3ForSequenceClassification": _QWEN3,
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen3VLForSequenceClassification": _QWEN3_VL,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "RobertaForSequenceClassification": _ROBERTA,
    "BertForSequenceClassification": Architecture("cross-encoder", bert_cross_encoder, _plain_positions, BERT),
    "BertModel": Architecture("bi-encoder", bert_bi_encoder, _plain_positions, BERT),
    "XLMRobertaModel": Architecture("bi-encoder", roberta_bi_encoder, _roberta_positions, ROBERTA),
}


def find_architecture(config: Config) -> tuple[str, Architecture]:
    """The name and the entry of the checkpoint's architecture; ModelError with the list of known ones.

    ModelError too where its folder says that the checkpoint is for something else than scores of that architecture.
    """
    for name in config.architectures:
        if name in ARCHITECTURES:
            architecture = ARCHITECTURES[name]
            config.require("quantization_config", None)
            kind = config.entries.get("model_type")
            if kind is not None and kind not in architecture.model_types:
                types = " or ".join(architecture.model_types)
                raise config.wrong("model_type", f"must be {types} for the architecture {name}")
            expect_modules(name, architecture.family, Path(config.source).parent)
            return name, architecture
    found = ", ".join(map(shown, config.architectures)) or "no architecture"
    raise ModelError(f"{config.source} names {found} (`architectures`); supported are {', '.join(ARCHITECTURES)}.")

"""Which architectures are served, and what else must be known of each before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd.core import Family, ModelError
from rerankd.models.base import Model, TokenIds
from rerankd.models.bert import BertCrossEncoder
from rerankd.models.bi_encoder import BiEncoder
from rerankd.models.config import Config
from rerankd.models.qwen3 import Qwen3Reranker
from rerankd.models.qwen3_vl import Qwen3VLReranker
from rerankd.models.weights import Weights
from rerankd.models.xlm_roberta import XLMRobertaCrossEncoder, position_offset


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to load a model of an architecture, how it scores, and how its prompts are made.

    template: the built-in prompt template of a decoder
    positions: how many tokens a prompt may have by the model's own positions
    sees: whether it takes images and videos
    """

    family: Family
    load: Callable[[Config, Weights, TokenIds], Model]
    positions: Callable[[Config], int]
    template: Literal["qwen3", "qwen3_vl"] | None = None
    sees: bool = False


def _plain_positions(config: Config) -> int:
    return config.get("max_position_embeddings", int)


def _roberta_positions(config: Config) -> int:
    return config.get("max_position_embeddings", int) - position_offset(config)


def _text_positions(config: Config) -> int:
    return _plain_positions(config.section("text_config"))


_QWEN3_VL = Architecture("decoder", Qwen3VLReranker, _text_positions, template="qwen3_vl", sees=True)
_QWEN3 = Architecture("decoder", Qwen3Reranker, _plain_positions, template="qwen3")
_ROBERTA = Architecture("cross-encoder", XLMRobertaCrossEncoder, _roberta_positions)

ARCHITECTURES = {
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3ForSequenceClassification": _QWEN3,
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen3VLForSequenceClassification": _QWEN3_VL,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "RobertaForSequenceClassification": _ROBERTA,
    "BertForSequenceClassification": Architecture("cross-encoder", BertCrossEncoder, _plain_positions),
    "BertModel": Architecture("bi-encoder", BiEncoder, _plain_positions),
    "XLMRobertaModel": Architecture("bi-encoder", BiEncoder, _roberta_positions),
}


def find_architecture(config: Config) -> tuple[str, Architecture]:
    """The name and the entry of the checkpoint's architecture; ModelError with the list of known ones."""
    for name in config.architectures:
        if name in ARCHITECTURES:
            architecture = ARCHITECTURES[name]
            if architecture.family == "bi-encoder" and not (Path(config.source).parent / "modules.json").is_file():
                raise ModelError(
                    f"{config.source} describes a bare encoder ({name}) and there is no modules.json beside it "
                    "that says how to pool; a bi-encoder comes as a sentence-transformers folder."
                )
            return name, architecture
    found = ", ".join(config.architectures) or "no architecture"
    raise ModelError(f"{config.source} names {found}; supported are {', '.join(ARCHITECTURES)}.")

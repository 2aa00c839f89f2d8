"""The architectures that rerankd serves. A family's module is imported when one of its architectures is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from rerankd.core import ModelError
from rerankd.models.architecture import Architecture
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.quantized.source import read_scheme

ARCHITECTURES = {
    "Qwen3ForCausalLM": "qwen3.QWEN3",
    "Qwen3ForSequenceClassification": "qwen3.QWEN3",
    "JinaForRanking": "jina.JINA_V3",
    "JinaVLForRanking": "qwen2_vl.JINA_M0",
    "Qwen2ForCausalLM": "qwen2.QWEN2",
    "Qwen2ForSequenceClassification": "qwen2.QWEN2",
    "GemmaForCausalLM": "gemma.GEMMA",
    "GemmaForSequenceClassification": "gemma.GEMMA",
    "LayerWiseMiniCPMForCausalLM": "minicpm.LAYERWISE",
    "CostWiseGemmaForCausalLM": "gemma2.LIGHTWEIGHT",
    "T5ForConditionalGeneration": "t5.T5",
    "MT5ForConditionalGeneration": "t5.T5",
    "LlamaBidirectionalForSequenceClassification": "llama_bidirectional.NEMOTRON",
    "LlamaNemotronVLForSequenceClassification": "llama_nemotron_vl.NEMOTRON_VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl.QWEN3_VL",
    "Qwen3VLForSequenceClassification": "qwen3_vl.QWEN3_VL",
    "XLMRobertaForSequenceClassification": "roberta.CROSS_ENCODER",
    "RobertaForSequenceClassification": "roberta.CROSS_ENCODER",
    "CamembertForSequenceClassification": "roberta.CROSS_ENCODER",
    "BertForSequenceClassification": "bert.CROSS_ENCODER",
    "ElectraForSequenceClassification": "electra.CROSS_ENCODER",
    "DistilBertForSequenceClassification": "distilbert.CROSS_ENCODER",
    "MPNetForSequenceClassification": "mpnet.CROSS_ENCODER",
    "DebertaV2ForSequenceClassification": "deberta_v2.CROSS_ENCODER",
    "NewForSequenceClassification": "gte.CROSS_ENCODER",
    "GteForSequenceClassification": "gte.CROSS_ENCODER",
    "ModernBertForSequenceClassification": "modernbert.CROSS_ENCODER",
    "BertModel": "bert.POOLED",
    "XLMRobertaModel": "roberta.POOLED",
    "RobertaModel": "roberta.POOLED",
    "CamembertModel": "roberta.POOLED",
    "ModernBertModel": "modernbert.POOLED",
    "DistilBertModel": "distilbert.POOLED",
    "ElectraModel": "electra.POOLED",
    "MPNetModel": "mpnet.POOLED",
    "MPNetForMaskedLM": "mpnet.POOLED",
    "DebertaV2Model": "deberta_v2.POOLED",
    "NewModel": "gte.POOLED",
    "GteModel": "gte.POOLED",
    "BertForMaskedLM": "bert.POOLED",
    "XLMRobertaForMaskedLM": "roberta.POOLED",
    "RobertaForMaskedLM": "roberta.POOLED",
    "CamembertForMaskedLM": "roberta.POOLED",
    "ModernBertForMaskedLM": "modernbert.POOLED",
    "DistilBertForMaskedLM": "distilbert.POOLED",
    "Qwen3Model": "qwen3.EMBEDDING",
    "HF_ColBERT": "bert.COLBERT",
}
"""Names in config.json, and where `Architecture` is: a module of this folder and its variable."""


def architecture(name: str) -> Architecture:
    """The architecture of a name in ARCHITECTURES."""
    module, variable = ARCHITECTURES[name].split(".")
    entry: Architecture = getattr(import_module(f"rerankd.models.{module}"), variable)
    return entry


def find_architecture(config: Config) -> tuple[str, Architecture]:
    """The name and the entry of the checkpoint's architecture; ModelError for one that is not supported.

    ModelError too for a configuration of another model type, or of quantised weights in an unsupported format.
    """
    for name in config.architectures:
        if name in ARCHITECTURES:
            entry = architecture(name)
            read_scheme(config)
            kind = config.entries.get("model_type")
            if kind is not None and kind not in entry.model_types:
                types = " or ".join(entry.model_types)
                raise config.wrong("model_type", f"must be {types} for the architecture {name}")
            return name, entry
    names = ", ".join(map(shown, config.architectures)) or "no architecture"
    raise ModelError(
        f"{config.source} names {names} (`architectures`), which is not supported. {_way_out(config.architectures)}"
        "docs/models.md lists the models that are, and `rerankd models` those of them in this machine's cache."
    )


def _way_out(names: Sequence[str]) -> str:
    """What to know about architectures that are not supported, as sentences."""
    if any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names):
        return (
            "A language model scores only by a rule that its authors trained it for, and no rule for this one is "
            "known: a chat model cannot rerank. "
        )
    if any(name.endswith("ForSequenceClassification") for name in names):
        return (
            "transformers runs it without --model-impl native; it is an extra package: "
            "pip install 'rerankd[transformers]'. "
        )
    return ""

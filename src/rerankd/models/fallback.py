"""Models without an implementation here, run by transformers: each prompt is a row of a padded batch.

Slower than an implementation of ours, which computes no padding and shares prefixes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rerankd.core import ModelError, PackedBatch, PackedGroup, Span
from rerankd.models.answers import read_answers
from rerankd.models.base import TokenIds
from rerankd.models.checkpoint.chat_template import chat_template
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.modules import read_logit_score
from rerankd.models.checkpoint.sentence_transformers import MODULES, section, transformer_settings
from rerankd.models.heads import Activation, Label, asked_logits
from rerankd.models.labels import declared_activation, read_labels
from rerankd.models.recipes.encoders import CROSS_ENCODER
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.registry import ARCHITECTURES, find_architecture

log = logging.getLogger("rerankd")

LOGIT_SCORE = Recipe("sentence-transformers", family="decoder", answers=("yes", "no"))
"""The recipe of a chain of sentence-transformers, which names the answer tokens."""
ROWS_AT_ONCE = 16
"""Prompts in a padded batch, of nearly one length."""
PADDED_POSITIONS = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose positions begin behind the padding id, as RoBERTa's do."""
LAST_TOKEN = ("xlnet",)
"""Model types that read a prompt's last row, so that the padding comes first."""
ANY_LENGTH = 1 << 20
"""Positions of a model that names no number of them."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """A checkpoint that transformers loads, and its recipes.

    trusted: whether code of its folder may run
    """

    folder: Path
    overrides: Mapping[str, Any]
    trusted: bool
    recipes: tuple[Recipe, ...]

    def positions(self, config: Config) -> int:
        """How many tokens a prompt may have by the model's own positions."""
        positions = config.size("max_position_embeddings", config.size("n_positions", ANY_LENGTH))
        if config.entries.get("model_type") in PADDED_POSITIONS:
            positions -= config.size("pad_token_id", 1, least=0) + 1
        return positions

    def load(
        self, config: Config, token_id: TokenIds, device: torch.device, dtype: torch.dtype, recipe: Recipe, types: bool
    ) -> PaddedModel:
        """Read the weights. ModelError for missing weights, and for models that transformers cannot load.

        types: whether the model reads token types
        """
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        decodes = bool(recipe.answers)
        answers = read_answers(config, token_id, recipe) if decodes else None
        labels = None if decodes else read_labels(config, recipe.label)
        activation = answers.activation if answers else declared_activation(config, config.num_labels)
        kind: Any = AutoModelForCausalLM if decodes else AutoModelForSequenceClassification
        try:
            model, report = kind.from_pretrained(
                self.folder,
                config=self._config(),
                dtype=dtype,
                trust_remote_code=self.trusted,
                output_loading_info=True,
            )
        except Exception as error:  # whatever the model's own code raises
            raise failed(self.folder, error) from None
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"The weights in {self.folder} lack {len(missing)} tensors: `{missing[0]}` is the first.")
        model = model.to(device).eval()
        if labels is not None and model.num_labels != labels.count:
            raise config.wrong("id2label", f"must have {model.num_labels} labels, as the model has")
        types = types and "token_type_ids" in inspect.signature(model.forward).parameters
        ids = answers.ids if answers else None
        head = PaddedHead(activation) if labels is None else PaddedHead(activation, labels.chosen, labels.count)
        padded_model = PaddedModel(model, ids, types, head)
        if padded_model.padding is None or not padded_model.bears_padding():
            log.info("Prompts of different lengths run apart, since padding would change their scores.")
            return replace(padded_model, pads=False)
        return padded_model

    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trusted, **self.overrides)

    def expect_prompt(self, name: str, config: Config) -> None:
        """ModelError for a classifier of the architecture `name` whose prompt is unknown.

        It is unknown for classifiers over decoders, and where sentence-transformers writes pairs by a chat template.
        """
        if self.recipes != (CROSS_ENCODER,):
            return
        if (self.folder / MODULES).is_file():
            path, settings = transformer_settings(self.folder)
            unknown = "message" in section(settings, "modality_config", path)
        else:
            unknown = _is_decoder(name, config) or chat_template(self.folder)[0] is not None
        if unknown:
            hint = " Without --model-impl transformers rerankd knows more of it." if name in ARCHITECTURES else ""
            raise ModelError(
                f"{config.source} names {shown(name)}, a classifier over a language model, and nothing in the folder "
                "says with which prompt it was trained, so that any score may be wrong. If that was the tokenizer's "
                f"plain pair, say so: --recipe {CROSS_ENCODER.name}.{hint}"
            )


def _is_decoder(name: str, config: Config) -> bool:
    """Whether transformers has a class for text generation beside a classifier, and none for filling in masks."""
    family = name.removesuffix("ForSequenceClassification")
    generates = any(f"{family}{kind}" in _implemented() for kind in ("ForCausalLM", "LMHeadModel"))
    filled = f"{family}ForMaskedLM" in _implemented() or config.entries.get("model_type") in LAST_TOKEN
    return generates and not filled and not config.entries.get("is_encoder_decoder")


def find_fallback(config: Config, overrides: Mapping[str, Any], trusted: bool) -> tuple[str, Fallback]:
    """The name of the checkpoint's architecture, and the fallback for it.

    Raises ModelError where transformers is not installed, and for a checkpoint that no rule scores.
    """
    folder = Path(config.source).parent
    name = next(iter(config.architectures), "no architecture")
    if name.endswith("ForSequenceClassification"):
        recipe = CROSS_ENCODER
    elif read_logit_score(folder) is not None:
        recipe = LOGIT_SCORE
    else:
        find_architecture(config)
        raise ModelError(
            f"{config.source} names {shown(name)} (`architectures`); transformers runs sequence classifiers, and "
            "language models whose modules.json lists LogitScore."
        )
    if find_spec("transformers") is None:
        raise ModelError(
            f"{config.source} names {shown(name)} (`architectures`), which transformers runs; it is an extra package: "
            "pip install 'rerankd[transformers]'."
        )
    files = _code(config)
    if files and trusted:
        log.warning("Code of %s runs, as --trust-remote-code allows: %s (auto_map in config.json).", folder, files)
    elif files and name not in _implemented():
        raise ModelError(
            f"{config.source} names {shown(name)}, which is code of the folder's own ({files}); --trust-remote-code "
            "runs it."
        )
    return name, Fallback(folder, overrides, trusted, (recipe,))


def _code(config: Config) -> str:
    """The files that `auto_map` names, in a list of words; empty for none."""
    section = config.entries.get("auto_map")
    values = section.values() if isinstance(section, Mapping) else ()
    references = {part for value in values for part in (value if isinstance(value, list) else [value]) if part}
    return ", ".join(sorted({f"{str(part).rpartition('.')[0].replace('.', '/')}.py" for part in references}))


def _implemented() -> frozenset[str]:
    """transformers' own classes."""
    import transformers

    return frozenset(dir(transformers))


def read_tokenizer(folder: Path, trusted: bool) -> Any:
    """transformers' `AutoTokenizer` of a folder. ModelError where none loads.

    trusted: whether code of the folder may run
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # whatever the tokenizer's own code raises
        raise failed(folder, error) from None


def failed(folder: Path, error: Exception) -> ModelError:
    """The ModelError for an error of transformers."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"transformers cannot load {folder}: {reason}")


@dataclass(frozen=True, slots=True)
class PaddedHead:
    """The head of a model that gives its logits itself; `label`: see `one_logit`."""

    activation: Activation
    label: Label | None = None
    outputs: int = 0

    def rows(self, batch: PackedBatch) -> None:
        """See `Head`."""

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `asked_logits`. states: the logits of the model's labels, [documents, labels]."""
        return asked_logits(states, batch, self.label)


@dataclass(frozen=True, slots=True)
class PaddedModel:
    """A model of transformers.

    answers: the tokens whose logits score behind a prompt; None for a classifier
    types: whether the model reads token types
    pads: whether prompts of different lengths share a batch
    """

    model: Any
    answers: tuple[int, ...] | None
    types: bool
    head: PaddedHead
    pads: bool = True

    @property
    def shares_prefix(self) -> bool:
        """Whether prompts come in two parts, which are joined here."""
        return self.answers is not None

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        prompts = [(group.prefix, suffix) for group in batch.groups for suffix in group.suffixes]
        lengths = [sum(map(len, prompt)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        parts = list(self._parts(order, lengths))
        logits = torch.cat([self._logits([prompts[i] for i in part], batch) for part in parts])
        places = torch.tensor(order, device=logits.device)
        return self.head(torch.empty_like(logits).index_copy_(0, places, logits), batch)

    @property
    def padding(self) -> int | None:
        """The id that fills rows; None for a model that names none."""
        pad_id = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        return pad_id if isinstance(pad_id, int) and pad_id >= 0 else None

    @torch.inference_mode()
    def bears_padding(self) -> bool:
        """Whether a prompt has the same logits alone and beside a longer one; some architectures look past the mask."""
        device, tolerance = self.model.device, 1e-3 if self.model.dtype == torch.float32 else 5e-2
        short, long = Span(0, 9), Span(9, 42)
        ids = torch.arange(42, device=device) + 1
        batch = PackedBatch(ids, torch.zeros_like(ids), None, (PackedGroup(Span(0, 0), (short, long)),))
        alone, padded = self._logits([(short,)], batch), self._logits([(short,), (long,)], batch)
        return torch.allclose(alone[0], padded[0], rtol=tolerance, atol=tolerance)

    def _parts(self, order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """The prompts of each batch, from `order`, which is by length."""
        groups = [list(order)] if self.pads else [list(members) for _, members in groupby(order, lengths.__getitem__)]
        # Without a padding id transformers' classifiers over decoders do not find the ends of several rows.
        at_once = 1 if self.padding is None else ROWS_AT_ONCE
        for group in groups:
            yield from (group[start : start + at_once] for start in range(0, len(group), at_once))

    def _logits(self, prompts: Sequence[tuple[Span, ...]], batch: PackedBatch) -> Tensor:
        """float32 [prompts, labels]."""

        def padded(values: Tensor, filling: int) -> Tensor:
            rows = [torch.cat([values[span.start : span.stop] for span in spans]) for spans in prompts]
            return pad_sequence(rows, batch_first=True, padding_value=filling, padding_side=side)

        side = "left" if self.model.config.model_type in LAST_TOKEN else "right"
        inputs = {
            "input_ids": padded(batch.token_ids, self.padding or 0),
            "attention_mask": padded(torch.ones_like(batch.token_ids), 0),
        }
        if self.types and batch.token_types is not None:
            inputs["token_type_ids"] = padded(batch.token_types, 0)
        logits: Tensor = self.model(**inputs).logits
        if self.answers is not None:
            last = inputs["attention_mask"].sum(1) - 1
            logits = logits[torch.arange(len(last), device=last.device), last][:, list(self.answers)]
        return logits.float()

"""Seeded random checkpoints of T5, as monoT5 has it, and of mT5, as mMARCO's models have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests import vocabularies
from tests.checkpoints import Storage, randomise, store, widen_rows
from tests.decoder_checkpoints import PLAIN
from tests.encoder_checkpoints import edit

NO, YES = "\u2581false", "\u2581true"


def t5(
    folder: Path, *, tied: bool = True, form: str = "relu", spread: float = 3.0, storage: Storage = PLAIN, **own: Any
) -> Path:
    """monoT5's architecture, with heads that are not as wide as the states, and distances of few buckets.

    form: `feed_forward_proj`
    spread: of the answers' logits, which are divided by the root of the width where the head is the embedding
    own: entries of the configuration
    """
    vocabulary = vocabularies.t5()
    config = transformers.T5Config(
        vocab_size=vocabularies.size(vocabulary), d_model=64, d_kv=32, num_heads=3, d_ff=96, num_layers=3,
        num_decoder_layers=2, feed_forward_proj=form, relative_attention_num_buckets=16,
        relative_attention_max_distance=40, decoder_start_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    randomise(model, 0.7, 4)
    vocabularies.write(
        folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", model_max_length=512,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = tuple(tokenizer.convert_tokens_to_ids(answer) for answer in (NO, YES))
    widen_rows(model.lm_head.weight, answers, spread)
    with torch.no_grad():
        for block in (*model.encoder.block[:1], *model.decoder.block[:1]):
            block.layer[0].SelfAttention.relative_attention_bias.weight.mul_(20)
    store(model, folder, storage)
    # transformers calls all T5 tied, and saves that.
    edit(folder, tie_word_embeddings=tied, **own)
    return folder


def mt5(folder: Path, *, answers: tuple[str, str] = ("\u2581no", "\u2581yes"), storage: Storage = PLAIN) -> Path:
    """mT5's architecture, whose head is not the embedding.

    answers: (no, yes), tokens of the vocabulary
    """
    vocabulary = vocabularies.t5(answers)
    config = transformers.MT5Config(
        vocab_size=vocabularies.size(vocabulary), d_model=64, d_kv=32, num_heads=3, d_ff=96, num_layers=2,
        num_decoder_layers=2, relative_attention_num_buckets=16, relative_attention_max_distance=40,
    )  # fmt: skip
    model = transformers.MT5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    randomise(model, 0.7, 4)
    vocabularies.write(
        folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    widen_rows(model.lm_head.weight, tuple(tokenizer.convert_tokens_to_ids(answer) for answer in answers), 0.4)
    with torch.no_grad():
        for block in (*model.encoder.block[:1], *model.decoder.block[:1]):
            block.layer[0].SelfAttention.relative_attention_bias.weight.mul_(20)
    store(model, folder, storage)
    # As the published folders: the head is no embedding, and the form of the MLP is mT5's default.
    edit(folder, tie_word_embeddings=False, feed_forward_proj=...)
    return folder

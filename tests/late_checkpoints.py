"""Seeded random checkpoints for late interaction: of Stanford's ColBERT, PyLate and sentence-transformers 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tokenizers import AddedToken, Tokenizer

from tests import modernbert_checkpoints
from tests.checkpoints import ENCODER_SIZES, Storage, randomise, store
from tests.encoder_checkpoints import edit, write_bert_tokenizer

PLAIN = Storage()


def bert_model(folder: Path, storage: Storage, size: str = "tiny") -> None:
    config = transformers.BertConfig(vocab_size=30522, max_position_embeddings=512, **ENCODER_SIZES[size])
    model = transformers.BertModel(config)
    randomise(model, 1.3, 5)
    store(model, folder, storage)
    write_bert_tokenizer(folder)


def stanford(folder: Path, *, size: str = "tiny", storage: Storage = PLAIN, **metadata: Any) -> Path:
    """colbertv2's and answerai-colbert-small's form; metadata: entries of artifact.metadata."""
    bert_model(folder, storage, size)
    path = folder / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path).items()}
    linear = torch.randn(24, 64, generator=torch.Generator().manual_seed(9)) / 8
    tensors["linear.weight"] = linear.to(getattr(torch, storage.dtype))
    save_file(tensors, path, metadata={"format": "pt"})
    edit(folder, architectures=["HF_ColBERT"])
    entries = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 32, "doc_maxlen": 100,
        "mask_punctuation": True, "attend_to_mask_tokens": False, "dim": 24, "similarity": "cosine",
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(entries | metadata))
    return folder


def pylate(folder: Path, *, storage: Storage = PLAIN, **settings: Any) -> Path:
    """GTE-ModernColBERT's form: markers among the added tokens, settings beside the modules."""
    model = transformers.ModernBertModel(modernbert_checkpoints.config(vocab_size=30524, local_attention=64))
    randomise(model, 1.0, 3)
    store(model, folder, storage)
    modernbert_checkpoints.write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(marker, normalized=True) for marker in ("[Q] ", "[D] ")])
    tokenizer.save(str(folder / "tokenizer.json"))
    dense = Dense(64, 24, bias=False, activation_function=torch.nn.Identity())
    randomise(dense, 1.0, 2)
    (folder / "1_Dense").mkdir()
    dense.save(str(folder / "1_Dense"))
    path = folder / "1_Dense" / "config.json"
    entries = json.loads(path.read_text())
    path.write_text(
        json.dumps({n: v for n, v in entries.items() if n not in ("module_input_name", "module_output_name")})
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 99, "do_lower_case": false}')
    written = {
        "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ",
        "document_prefix": "[D] ", "query_length": 32, "document_length": 100, "attend_to_expansion_tokens": False,
        "skiplist_words": [",", ".", "?", "the"],
    }  # fmt: skip
    written = {name: value for name, value in (written | settings).items() if value is not ...}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(written))
    return folder


def multi_vector(folder: Path, *, transformer: dict[str, Any], mask: dict[str, Any], **options: Any) -> Path:
    """sentence-transformers 6's form; transformer, mask: arguments of the two modules."""
    source = folder / "source"
    source.mkdir()
    bert_model(source, PLAIN)
    dense = Dense(64, 24, activation_function=None, module_input_name="token_embeddings", use_residual=True)
    randomise(dense, 1.0, 2)
    modules: list[Any] = [
        Transformer(str(source), **transformer),
        dense,
        MultiVectorMask(**mask),
        Normalize(module_input_name="token_embeddings"),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu", **options)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder

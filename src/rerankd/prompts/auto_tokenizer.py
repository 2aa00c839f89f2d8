"""The tokenizer of a checkpoint that transformers runs, as transformers loads it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from rerankd.core import ModelError
from rerankd.models.fallback import read_tokenizer
from rerankd.prompts.tokenizer import LoadedTokenizer

NO_LIMIT = 10**20
"""transformers writes 1e30 for a tokenizer without a limit."""


def auto_tokenizer(folder: Path, trusted: bool) -> LoadedTokenizer:
    """`AutoTokenizer`, which must be one of the library tokenizers. ModelError for another, or none that loads.

    trusted: whether code of the folder may run
    """
    loaded = read_tokenizer(folder, trusted)
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ModelError(f"The tokenizer of {folder} ({type(loaded).__name__}) is not one of the library tokenizers.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    length = loaded.model_max_length
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    special = {name: str(token) for name in names if (token := getattr(loaded, name, None)) is not None}
    return LoadedTokenizer(
        tokenizer,
        int(length) if length and length < NO_LIMIT else None,
        special,
        loaded.truncation_side,
        has_types="token_type_ids" in loaded.model_input_names,
    )

"""The files that a model is loaded from."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from rerankd.core import ModelError

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
GGUF = ".gguf"
SMALL_FILES = ("*.json", "*.jinja", "vocab.txt", "merges.txt", "*.model", "artifact.metadata", "*.py")
UNUSED_FILES = ("onnx/*", "openvino/*", "checkpoint-*", "trainer_state.json", "data_config.json")


def needed_files(files: Sequence[str], weights: bool = True) -> list[str]:
    """The files of a repository that loading a model needs, with the weights in one format only.

    weights: whether to include the weights
    """
    needed = [name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in SMALL_FILES)]
    for single, index in (SAFETENSORS, PICKLED) if weights else ():
        suffix = Path(single).suffix
        if single in files:
            needed.append(single)
        elif index in files:
            needed.extend(name for name in files if "/" not in name and name.endswith(suffix))
        else:
            continue
        break
    else:
        # A GGUF file holds the whole model. If there are several, the user has to download one and give its path.
        gguf = [name for name in files if "/" not in name and name.endswith(GGUF)]
        has_others = any(name in files for name in (*SAFETENSORS, *PICKLED))
        needed += gguf if len(gguf) == 1 and not has_others else []
    if weights:
        needed += _module_weights(files)
    indexes = {SAFETENSORS[1], PICKLED[1]}
    unused = indexes if any(name in needed for name in (SAFETENSORS[0], PICKLED[0])) else set()
    return [
        name
        for name in needed
        if name not in unused and not any(fnmatch.fnmatch(name, pattern) for pattern in UNUSED_FILES)
    ]


def _module_weights(files: Sequence[str]) -> list[str]:
    """The weights of sentence-transformers' modules, such as `2_Dense/model.safetensors`, each in one format only."""
    by_module: dict[str, str] = {}
    for name in (PICKLED[0], SAFETENSORS[0]):
        by_module |= {file.split("/")[0]: file for file in files if re.fullmatch(rf"\d+_\w+/{re.escape(name)}", file)}
    return list(by_module.values())


def inside(folder: Path, name: str, named_by: Path) -> Path:
    """The path of the file `name` in a folder. Raises ModelError for a name that leads out of the folder.

    named_by: the file that refers to `name`, for the error
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ModelError(f"{named_by} names {name!r}, which is outside of {folder}; such a file is not read.")
    return folder / path

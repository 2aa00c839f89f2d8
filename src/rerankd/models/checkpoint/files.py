"""Which files of a repository or a folder a model is loaded from."""

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
    """Which of a repository's files a model is loaded from: one form of the weights, and no other framework's.

    weights: whether they are needed
    """
    wanted = [name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in SMALL_FILES)]
    for single, index in (SAFETENSORS, PICKLED) if weights else ():
        suffix = Path(single).suffix
        if single in files:
            wanted.append(single)
        elif index in files:
            wanted.extend(name for name in files if "/" not in name and name.endswith(suffix))
        else:
            continue
        break
    else:
        # Its metadata are in the file with its weights. Of several one must be named, in a folder of the user's.
        whole = [name for name in files if "/" not in name and name.endswith(GGUF)]
        has_others = any(name in files for name in (*SAFETENSORS, *PICKLED))
        wanted += whole if len(whole) == 1 and not has_others else []
    if weights:
        wanted += _module_weights(files)
    indexes = {SAFETENSORS[1], PICKLED[1]}
    unused = indexes if any(name in wanted for name in (SAFETENSORS[0], PICKLED[0])) else set()
    return [
        name
        for name in wanted
        if name not in unused and not any(fnmatch.fnmatch(name, pattern) for pattern in UNUSED_FILES)
    ]


def _module_weights(files: Sequence[str]) -> list[str]:
    """The weights of sentence-transformers' modules, one form of each: `2_Dense/model.safetensors`."""
    found: dict[str, str] = {}
    for name in (PICKLED[0], SAFETENSORS[0]):
        found |= {file.split("/")[0]: file for file in files if re.fullmatch(rf"\d+_\w+/{re.escape(name)}", file)}
    return list(found.values())


def inside(folder: Path, name: str, named_by: Path) -> Path:
    """The path of a file in `folder` that `named_by` names. ModelError for a name that leads out of the folder."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ModelError(f"{named_by} names {name!r}, which lies outside of {folder}; no such file is read.")
    return folder / path

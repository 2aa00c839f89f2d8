"""From a model's name to a folder on disk: a local folder as it is, or the files needed from a hub."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rerankd.core import ModelError
from rerankd.models.weights import PICKLED, SAFETENSORS

log = logging.getLogger("rerankd")

Hub = Literal["huggingface", "modelscope"]

SMALL_FILES = ("*.json", "*.jinja", "vocab.txt", "merges.txt")
UNUSED = ("onnx/*", "openvino/*", "*.onnx_data", "checkpoint-*", "trainer_state.json", "data_config.json")


def resolve(model: str, hub: Hub = "huggingface", revision: str | None = None) -> Path:
    """The folder that holds `model`, downloaded first if it is an id on `hub`.

    The environment of huggingface_hub applies (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
    Raises ModelError for a model that is neither a folder nor to be had from the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{model} is a file; give the model's folder or its id on a hub.")
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"There is no folder {model}.")
    return _from_modelscope(model, revision) if hub == "modelscope" else _from_hugging_face(model, revision)


def needed_files(files: Sequence[str]) -> list[str]:
    """Which of a repository's files a model is loaded from: one form of the weights, and no other framework's."""
    wanted = [name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in SMALL_FILES)]
    for single, index in (SAFETENSORS, PICKLED):
        suffix = Path(single).suffix
        if single in files:
            wanted.append(single)
        elif index in files:
            wanted.extend(name for name in files if "/" not in name and name.endswith(suffix))
        else:
            continue
        break
    indexes = {SAFETENSORS[1], PICKLED[1]}
    unused = indexes if any(name in wanted for name in (SAFETENSORS[0], PICKLED[0])) else set()
    return [
        name for name in wanted if name not in unused and not any(fnmatch.fnmatch(name, pattern) for pattern in UNUSED)
    ]


def _from_hugging_face(model: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        files = HfApi().list_repo_files(model, revision=revision)
        log.info("Fetching %s", model)
        return Path(snapshot_download(model, revision=revision, allow_patterns=needed_files(files)))
    except GatedRepoError:
        raise ModelError(f"{model} is gated on the hub: accept its terms there, then set HF_TOKEN.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{model} is neither a local folder nor a model on the hub (a private one needs HF_TOKEN)."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{model} has no revision {revision!r} on the hub.") from None
    except HFValidationError:
        raise ModelError(f"{model!r} is neither a local folder nor a model id such as 'owner/name'.") from None
    except HfHubHTTPError as error:
        raise ModelError(f"The hub refused {model}: {_first_line(error)}") from None
    except Exception as error:  # the HTTP client's own errors; offline mode is one too
        reason = _first_line(error)
    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(f"The hub cannot be reached ({reason}) and {model} is not in the local cache.") from None
    log.warning("The hub was not reached (%s); using the cached copy of %s.", reason, model)
    return folder


def _from_modelscope(model: str, revision: str | None) -> Path:
    try:
        from modelscope import HubApi, snapshot_download
    except ImportError:
        raise ModelError("--hub modelscope needs an extra package: pip install 'rerankd[modelscope]'.") from None
    try:
        listed = HubApi().get_model_files(model, revision=revision, recursive=True)
        files = [str(entry["Path"]) for entry in listed if entry.get("Type") != "tree"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=needed_files(files)))
    except Exception as error:  # modelscope's errors have no common base
        raise ModelError(f"ModelScope did not give {model}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

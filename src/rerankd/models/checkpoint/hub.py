"""Find a model's folder on disk, or download the needed files from a hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from rerankd.core import ModelError
from rerankd.models.checkpoint.files import GGUF, PICKLED, SAFETENSORS, SMALL_FILES, UNUSED_FILES, needed_files

log = logging.getLogger("rerankd")

Hub = Literal["huggingface", "modelscope"]


def resolve(model: str, hub: Hub = "huggingface", revision: str | None = None, weights: bool = True) -> Path:
    """The folder or the GGUF file of a model, downloaded if necessary.

    model: a folder, a GGUF file, or an id on `hub`
    revision: branch, tag or commit on the hub; None is the default branch
    weights: whether to download the weights too

    The environment variables of huggingface_hub apply (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
    Raises ModelError if the model is neither on disk nor on the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _gguf_in(folder) or folder
    if folder.is_file():
        if folder.suffix != GGUF:
            raise ModelError(f"{model} is a file, but not a GGUF file; give the model's folder or its id on a hub.")
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"The folder {model} does not exist.")
    fetch = _from_modelscope if hub == "modelscope" else _from_hugging_face
    folder = fetch(model, revision, weights)
    return _gguf_in(folder) or folder


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no other weights; None if there is no such file."""
    paths = sorted(folder.glob(f"*{GGUF}"))
    if not paths or any((folder / name).is_file() for name in (*SAFETENSORS, *PICKLED)):
        return None
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ModelError(f"{folder} holds several GGUF files ({names}); give the path of one of them.")
    return paths[0]


def _from_hugging_face(model: str, revision: str | None, weights: bool) -> Path:
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
        files = [file.rfilename for file in HfApi().model_info(model, revision=revision).siblings or ()]
        log.info("Fetching %s", model)
        return Path(snapshot_download(model, revision=revision, allow_patterns=needed_files(files, weights)))
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
    except Exception as error:  # errors of the HTTP client, and of offline mode
        reason = _first_line(error)
    # The list of files is unknown here, so the cache is searched for each format of weights.
    for pattern in ("*.safetensors", "*.bin", f"*{GGUF}"):
        try:
            folder = snapshot_download(
                model,
                revision=revision,
                local_files_only=True,
                allow_patterns=[*SMALL_FILES, pattern],
                ignore_patterns=list(UNUSED_FILES),
            )
        except LocalEntryNotFoundError:
            continue
        log.warning("The hub was not reached (%s); using the cached copy of %s.", reason, model)
        return Path(folder)
    raise ModelError(f"The hub cannot be reached ({reason}), and {model} is not in the local cache.")


def _from_modelscope(model: str, revision: str | None, weights: bool) -> Path:
    try:
        from modelscope import HubApi, snapshot_download
    except ImportError:
        raise ModelError("--hub modelscope needs an extra package: pip install 'rerankd[modelscope]'.") from None
    try:
        listed = HubApi().get_model_files(model, revision=revision, recursive=True)
        files = [str(entry["Path"]) for entry in listed if entry.get("Type") != "tree"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=needed_files(files, weights)))
    except Exception as error:  # modelscope's errors have no common base
        raise ModelError(f"{model} cannot be downloaded from ModelScope: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

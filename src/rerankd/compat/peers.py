"""vLLM and SGLang, read from the data files beside this module.

A file holds groups of names with a reason, `why`: a name of `reasons.json`, or a sentence. Flags and their arity are
those of vLLM 0.8.5 to 0.32 and SGLang 0.4.6 to 0.5.23, as `scripts/compare_flags.py` finds them in their sources;
variables those of vLLM 0.32's `vllm/envs.py` and SGLang 0.5.23's `srt/environ.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerankd.compat.flags import Peer, Refused

FOLDER = Path(__file__).parent


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


REASONS: Mapping[str, str] = _read("reasons")


def _names_by_reason(groups: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    return {REASONS.get(group["why"], group["why"]): tuple(group["names"]) for group in groups}


def _peer(data: Mapping[str, Any]) -> Peer:
    refused = (
        Refused(
            tuple(group["names"]),
            REASONS.get(group["why"], group["why"]),
            tuple(group.get("harmless", ())),
            {name: tuple(values) for name, values in group.get("harmless_entries", {}).items()},
        )
        for group in data["refused_flags"]
    )
    return Peer(data["program"], _names_by_reason(data["ignored_flags"]), tuple(refused))


_VLLM, _SGLANG = _read("vllm"), _read("sglang")
VLLM, SGLANG = _peer(_VLLM), _peer(_SGLANG)
VLLM_IGNORED_VARIABLES = _names_by_reason(_VLLM["ignored_variables"])
SGLANG_IGNORED_VARIABLES = _names_by_reason(_SGLANG["ignored_variables"])

"""The APIs that the server speaks, one file each: parse and render only."""

from __future__ import annotations

from rerankd.server.dialects.base import Dialect
from rerankd.server.dialects.sglang import SGLANG
from rerankd.server.dialects.vllm import VLLM

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (VLLM, SGLANG)}

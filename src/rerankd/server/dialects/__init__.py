"""The APIs that the server speaks, one file each: parse and render only."""

from __future__ import annotations

from rerankd.server.dialects.base import Dialect
from rerankd.server.dialects.cohere import COHERE
from rerankd.server.dialects.elastic import ELASTIC
from rerankd.server.dialects.infinity import INFINITY
from rerankd.server.dialects.jina import JINA
from rerankd.server.dialects.kserve import KSERVE
from rerankd.server.dialects.nvidia import NVIDIA
from rerankd.server.dialects.sglang import SGLANG
from rerankd.server.dialects.tei import TEI
from rerankd.server.dialects.vllm import VLLM
from rerankd.server.dialects.voyage import VOYAGE
from rerankd.server.dialects.weaviate import WEAVIATE

# A call at the root that could belong to several APIs goes to the first that claims it, after the server's own.
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (VLLM, SGLANG, COHERE, TEI, INFINITY, VOYAGE, JINA, NVIDIA, WEAVIATE, ELASTIC, KSERVE)
}

"""Clients of rerank APIs as they are published, with nothing changed but where they call."""

from __future__ import annotations

from typing import Any, TypeAlias

import cohere
import litellm
import pytest
import requests
import voyageai
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.huggingface_api.ranker import TruncationDirection
from haystack_integrations.components.rankers.jina import JinaRanker
from infinity_client import AuthenticatedClient, Client
from infinity_client.api.default import rerank as infinity_rerank
from infinity_client.models import RerankInput, ReRankResult
from langchain_cohere import CohereRerank
from langchain_community.document_compressors import InfinityRerank, JinaRerank, jina_rerank
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaCohere
from llama_index.postprocessor.jinaai_rerank import JinaRerank as LlamaJina
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank as LlamaNvidia
from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from tei_client import HttpClient as TeiClient
from tei_client.clients.grpc_client import GrpcClient as TeiGrpcClient
from tei_client.models import ModelType

from conftest import DOCUMENTS, KEY, QUERY

Ranked: TypeAlias = list[tuple[int, float]]


def close(got: Ranked, wanted: Ranked) -> bool:
    assert [index for index, _ in got] == [index for index, _ in wanted]
    assert [score for _, score in got] == pytest.approx([score for _, score in wanted], abs=1e-4)
    return True


@pytest.fixture(scope="session")
def logits(server: str) -> Ranked:
    """NIM's scores: those before a sigmoid."""
    raw = requests.post(
        f"{server}/tei/rerank",
        json={"query": QUERY, "texts": DOCUMENTS, "raw_scores": True},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    return [(one["index"], one["score"]) for one in raw.json()]


# Cohere's clients are told apart at the root by their header, or call below the prefix.
BASES = ["", "/cohere"]


@pytest.mark.parametrize("base", BASES)
def test_cohere_v1(server: str, expected: Ranked, base: str) -> None:
    client = cohere.Client(KEY, base_url=server + base)
    documents: list[Any] = [*DOCUMENTS[:3], {"text": DOCUMENTS[3]}]
    answer = client.rerank(
        model="rerank-english-v3.0", query=QUERY, documents=documents, return_documents=True, top_n=3
    )
    assert close([(one.index, one.relevance_score) for one in answer.results], expected[:3])
    assert all(one.document is not None and one.document.text == DOCUMENTS[one.index] for one in answer.results)
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


@pytest.mark.parametrize("base", BASES)
def test_cohere_v2(server: str, expected: Ranked, base: str) -> None:
    client = cohere.ClientV2(KEY, base_url=server + base)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=256)
    assert close([(one.index, one.relevance_score) for one in answer.results], expected)


def test_cohere_raises_its_own_errors(server: str) -> None:
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2("wrong", base_url=server).rerank(model="m", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.BadRequestError) as refused:
        cohere.ClientV2(KEY, base_url=server).rerank(model="m", query=QUERY, documents=[])
    assert refused.value.body["message"].startswith("documents: ")


def test_voyageai(server: str, expected: Ranked) -> None:
    client = voyageai.Client(api_key=KEY, base_url=f"{server}/voyage/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model="rerank-2.5", top_k=2)
    assert close([(one.index, one.relevance_score) for one in answer.results], expected[:2])
    assert [one.document for one in answer.results] == [DOCUMENTS[index] for index, _ in expected[:2]]
    assert answer.total_tokens > 0
    with pytest.raises(voyageai.error.AuthenticationError):
        voyageai.Client(api_key="wrong", base_url=f"{server}/voyage/v1").rerank(QUERY, DOCUMENTS, model="m")


def test_infinity_client(server: str, expected: Ranked) -> None:
    client = AuthenticatedClient(base_url=f"{server}/infinity", token=KEY)
    body = RerankInput(query=QUERY, documents=DOCUMENTS, return_documents=True, top_n=3)
    answer = infinity_rerank.sync(client=client, body=body)
    assert isinstance(answer, ReRankResult)
    assert close([(one.index, one.relevance_score) for one in answer.results], expected[:3])
    assert [one.document for one in answer.results] == [DOCUMENTS[index] for index, _ in expected[:3]]


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("cohere/rerank-english-v3.0", "/cohere"),
        # Its jina_ai provider drops the path of a base URL, so it calls the root: the server's own name for the model.
        ("jina_ai/sentence-transformers/all-MiniLM-L6-v2", ""),
        ("infinity/bge", "/infinity"),
        ("hosted_vllm/sentence-transformers/all-MiniLM-L6-v2", ""),
    ],
)
def test_litellm(server: str, expected: Ranked, model: str, base: str) -> None:
    answer = litellm.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=3, api_base=server + base, api_key=KEY)
    assert close([(one["index"], one["relevance_score"]) for one in answer.results], expected[:3])


@pytest.mark.parametrize("base", ["", "/nvidia"])
def test_litellm_for_nvidias_nim(server: str, expected: Ranked, logits: Ranked, base: str) -> None:
    answer = litellm.rerank(
        model="nvidia_nim/ranking/nvidia/llama-nemotron-rerank-1b-v2",
        query=QUERY, documents=DOCUMENTS, top_n=3, api_base=server + base, api_key=KEY,
    )  # fmt: skip
    ranked = [(one["index"], one["relevance_score"]) for one in answer.results]
    assert [index for index, _ in ranked] == [index for index, _ in expected[:3]]
    assert close(ranked, logits[:3])


@pytest.mark.parametrize("model", [None, "sentence-transformers/all-MiniLM-L6-v2"])
def test_langchains_nvidia(server: str, logits: Ranked, model: str | None) -> None:
    # It asks for the models first, and leaves the name out where none has its own name for its `root`.
    ranker = NVIDIARerank(
        base_url=f"{server}/v1", api_key=KEY, model=model, top_n=3, max_batch_size=3, truncate="END",
        usage_telemetry_enabled=False,
    )  # fmt: skip
    assert ranker.model == model
    assert close(of_langchain(ranker.compress_documents(PAGES, QUERY)), logits[:3])


@pytest.mark.parametrize("model", [None, "sentence-transformers/all-MiniLM-L6-v2"])
def test_llama_indexs_nvidia(server: str, logits: Ranked, model: str | None) -> None:
    ranker = LlamaNvidia(base_url=f"{server}/v1", api_key=KEY, model=model, top_n=3, max_batch_size=3, truncate="NONE")
    assert close(of_llama_index(ranker), logits[:3])


def of_langchain(documents: Any) -> Ranked:
    return [(DOCUMENTS.index(one.page_content), one.metadata["relevance_score"]) for one in documents]


PAGES = [Document(page_content=text) for text in DOCUMENTS]


@pytest.mark.parametrize("base", BASES)
def test_langchains_cohere(server: str, expected: Ranked, base: str) -> None:
    ranker = CohereRerank(cohere_api_key=KEY, base_url=server + base, model="rerank-v3.5", top_n=2)
    assert close(of_langchain(ranker.compress_documents(PAGES, QUERY)), expected[:2])


def test_langchains_jina(server: str, expected: Ranked, monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no option for its URL, which is a constant of its module.
    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{server}/jina/v1/rerank")
    ranker = JinaRerank(jina_api_key=KEY, top_n=2)
    assert close(of_langchain(ranker.compress_documents(PAGES, QUERY)), expected[:2])


def test_langchains_infinity(server: str, expected: Ranked) -> None:
    client = Client(base_url=f"{server}/infinity", headers={"Authorization": f"Bearer {KEY}"})
    ranker = InfinityRerank(client=client, model="m", top_n=2)
    assert close(of_langchain(ranker.compress_documents(PAGES, QUERY)), expected[:2])


def of_llama_index(ranker: Any) -> Ranked:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    ranked = ranker.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    return [(DOCUMENTS.index(one.node.get_content()), one.score) for one in ranked]


@pytest.mark.parametrize("base", BASES)
def test_llama_indexs_cohere(server: str, expected: Ranked, base: str) -> None:
    ranker = LlamaCohere(api_key=KEY, base_url=server + base, model="rerank-v3.5", top_n=3)
    assert close(of_llama_index(ranker), expected[:3])


def test_llama_indexs_jina(server: str, expected: Ranked) -> None:
    ranker = LlamaJina(api_key=KEY, base_url=f"{server}/jina/v1", model="m", top_n=3)
    assert close(of_llama_index(ranker), expected[:3])


@pytest.mark.parametrize("base", ["", "/tei"])
def test_llama_indexs_tei(server: str, expected: Ranked, base: str) -> None:
    ranker = TextEmbeddingInference(base_url=server + base, auth_token=f"Bearer {KEY}", top_n=3)
    assert close(of_llama_index(ranker), expected[:3])


@pytest.mark.parametrize("base", ["/cohere/v1/rerank", "/jina/v1/rerank"])
def test_llama_indexs_siliconflow(server: str, expected: Ranked, base: str) -> None:
    ranker = SiliconFlowRerank(api_key=KEY, base_url=server + base, top_n=3)
    assert close(of_llama_index(ranker), expected[:3])


@pytest.mark.parametrize("base", ["", "/tei"])
def test_tei_client(server: str, expected: Ranked, base: str) -> None:
    client = TeiClient(server + base, headers={"Authorization": f"Bearer {KEY}"})
    # It reads /info first, and refuses what is no reranker.
    assert client.health()
    ranks = client.rerank(QUERY, DOCUMENTS, return_text=True).ranks
    assert close([(one.index, one.score) for one in ranks], expected)
    assert [one.text for one in ranks] == [DOCUMENTS[index] for index, _ in expected]


def test_tei_client_over_grpc(grpc_address: str, server: str, expected: Ranked) -> None:
    client = TeiGrpcClient(grpc_address)
    ranks = client.rerank(QUERY, DOCUMENTS, return_text=True).ranks
    assert close([(one.index, one.score) for one in ranks], expected)
    assert [one.text for one in ranks] == [DOCUMENTS[index] for index, _ in expected]
    assert client.info().server_model_type == ModelType.Reranker
    (tokens,) = client.tokenize("née panda")
    words = [one for one in tokens.tokens if not one.special]
    assert [(one.text, one.start, one.stop) for one in words] == [("née", 0, 4), ("panda", 5, 10)]
    assert len(tokens.tokens) == len(words) + 2
    assert client.decode([one.id for one in tokens.tokens]) == "nee panda"


def of_haystack(ranker: Any) -> Ranked:
    documents = [HaystackDocument(content=text) for text in DOCUMENTS]
    ranked = ranker.run(query=QUERY, documents=documents, top_k=3)["documents"]
    return [(DOCUMENTS.index(one.content), one.score) for one in ranked]


@pytest.mark.parametrize("base", BASES)
def test_haystacks_cohere(server: str, expected: Ranked, base: str) -> None:
    ranker = CohereRanker(model="m", api_key=Secret.from_token(KEY), api_base_url=server + base)
    assert close(of_haystack(ranker), expected[:3])


def test_haystacks_jina(server: str, expected: Ranked) -> None:
    ranker = JinaRanker(model="m", api_key=Secret.from_token(KEY), base_url=f"{server}/jina/v1/rerank")
    assert close(of_haystack(ranker), expected[:3])


@pytest.mark.parametrize("direction", [None, TruncationDirection.RIGHT])
def test_haystacks_tei(server: str, expected: Ranked, direction: TruncationDirection | None) -> None:
    ranker = HuggingFaceTEIRanker(url=server, token=Secret.from_token(KEY))
    documents = [HaystackDocument(content=text) for text in DOCUMENTS]
    ranked = ranker.run(query=QUERY, documents=documents, top_k=3, truncation_direction=direction)["documents"]
    assert close([(DOCUMENTS.index(one.content), one.score) for one in ranked], expected[:3])

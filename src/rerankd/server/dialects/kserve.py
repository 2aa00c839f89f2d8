"""The Open Inference Protocol (KServe's V2, Triton's, MLServer's) over HTTP: rerank as tensors.

Source: `specification/protocol/inference_rest.md` of kserve/open-inference-protocol. Inputs may be binary; answers are
JSON, which the clients of the binary extension read too. A model has one version, 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.core import RerankRequest, RerankResult, text_content
from rerankd.core.counts import counted
from rerankd.schemas.contents import Open, by_type
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import ERRORS, Call, Dialect, Endpoint, Nothing, Served
from rerankd.server.dialects.kserve_binary import HEADER, unpack
from rerankd.server.dialects.names import is_ours, not_ours
from rerankd.server.dialects.probes import live, model_ready, ready
from rerankd.server.problems import Problem
from rerankd.version import __version__

QUERY: Literal["query"] = "query"
DOCUMENTS: Literal["documents"] = "documents"
SCORES = "scores"
VERSION = "1"
MOST_DIMENSIONS = 8
Dimension: TypeAlias = Annotated[int, Field(gt=-(1 << 31), lt=1 << 31)]
"""A number of 4,300 digits is JSON too. The product of many of those takes minutes, in which no other thread runs."""
Elements: TypeAlias = DocumentList[
    Annotated[
        Annotated[str, Tag("<string>")] | Annotated[DocumentList[str], Tag("<list>")],
        Discriminator(
            by_type(string="str", list="list"),
            custom_error_type="element",
            custom_error_message="must be a text, or a list of texts",
        ),
    ]
]


class KserveInput(Open):
    """A tensor of texts."""

    name: Literal["query", "documents"] = Field(description="`query`, of one text, or `documents`.")
    datatype: Literal["BYTES"] = Field(description="BYTES: texts, in UTF-8.")
    shape: DocumentList[Dimension] = Field(
        max_length=MOST_DIMENSIONS, description="as many elements as `data` has.", examples=[[2]]
    )
    data: Elements = Field(
        description="the texts, in one list or in lists of lists. With the binary tensor extension they follow the "
        "JSON, and `parameters.binary_data_size` is here instead.",
        examples=[["a", "b"]],
    )

    def texts(self, place: int) -> list[str]:
        """The elements in row-major order. Raises Problem for another number of them than the shape says."""
        texts = [text for element in self.data for text in ([element] if isinstance(element, str) else element)]
        if min(self.shape, default=0) < 0 or math.prod(self.shape) != len(texts):
            raise Problem(400, f"{self.shape} does not fit {counted(len(texts), 'element')}.", f"inputs[{place}].shape")
        return texts


class KserveOutput(Open):
    """A tensor that is asked for."""

    name: Literal["scores"] = Field(description="`scores`, the only output.")


class KserveBody(Open):
    """The protocol's inference request: a query, and the documents to score against it."""

    model: str = Field("", description="the name of the model, from the path.", examples=["example/reranker"])
    id: str | None = Field(None, description="an id, which the answer repeats.", examples=[None])
    inputs: DocumentList[KserveInput] = Field(
        min_length=2, max_length=2, description="the tensors `query` and `documents`, of texts (BYTES)."
    )
    outputs: DocumentList[KserveOutput] | None = Field(
        None, min_length=1, max_length=1, description="the tensors to return; null for all.", examples=[None]
    )


class KserveName(Nothing):
    """A model's name, from the path."""

    model: str = Field("", description="the name of the model, from the path.")


class KserveScores(BaseModel):
    """The scores of the documents, in the order of the request."""

    name: Literal["scores"] = "scores"
    datatype: Literal["FP32"] = "FP32"
    shape: list[int]
    data: list[float]


class KserveReply(BaseModel):
    """The protocol's inference answer."""

    model_name: str
    id: str
    outputs: list[KserveScores]


class KserveTensor(BaseModel):
    """A tensor that the model takes or gives; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class KserveModel(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[KserveTensor]
    outputs: list[KserveTensor]


class KserveServer(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class KserveLive(BaseModel):
    """Whether the server works."""

    live: bool


class KserveReady(BaseModel):
    """Whether calls are answered."""

    ready: bool


class KserveModelReady(KserveReady):
    """Whether calls of a model are answered."""

    name: str


class KserveError(BaseModel):
    """The protocol's error body."""

    error: str


def _parse(body: KserveBody, served: Served) -> Call[KserveBody]:
    _expect_our_model(body.model, served)
    tensors = {tensor.name: (place, tensor.texts(place)) for place, tensor in enumerate(body.inputs)}
    if len(tensors) < len(body.inputs):
        raise Problem(400, f"are `{QUERY}` and `{DOCUMENTS}`, one of each.", "inputs")
    place, query = tensors[QUERY]
    if len(query) != 1:
        raise Problem(400, f"`{QUERY}` holds {len(query)} texts; a request has one query.", f"inputs[{place}].data")
    place, documents = tensors[DOCUMENTS]
    if not documents:
        raise Problem(400, "must hold at least one document.", f"inputs[{place}].data")
    served.limits.check("documents", len(documents), f"inputs[{place}].data")
    request = RerankRequest(text_content(query[0]), tuple(map(text_content, documents)))
    ignored = [
        *body.unknown(),
        *(f"inputs[{i}].{name}" for i, tensor in enumerate(body.inputs) for name in tensor.unknown()),
        *(f"outputs[{i}].{name}" for i, tensor in enumerate(body.outputs or ()) for name in tensor.unknown()),
    ]
    return Call(body, (request,), tuple(ignored), body.id, {"documents": f"inputs[{place}].data"})


def _render(call: Call[KserveBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    scores = [document.score for document in result.in_request_order()]
    output = {"name": SCORES, "datatype": "FP32", "shape": [len(scores)], "data": scores}
    return {"model_name": call.body.model, "id": id, "outputs": [output]}


def _expect_our_model(model: str, served: Served) -> None:
    if not is_ours(model, served):
        raise not_ours(model, served)


def _parse_name(body: KserveName, served: Served) -> Call[KserveName]:
    _expect_our_model(body.model, served)
    return Call(body, ())


def _parse_ready(body: KserveName, served: Served) -> Call[KserveName]:
    _expect_our_model(body.model, served)
    return model_ready(body, served)


def _model(call: Call[KserveName], results: Sequence[RerankResult], id: str, served: Served) -> object:
    return {
        "name": call.body.model,
        "versions": [VERSION],
        "platform": "rerankd",
        "inputs": [
            {"name": QUERY, "datatype": "BYTES", "shape": [1]},
            {"name": DOCUMENTS, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": SCORES, "datatype": "FP32", "shape": [-1]}],
    }


def _server(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    return {"name": "rerankd", "version": __version__, "extensions": []}


def _of_model(path: str = "") -> tuple[str, ...]:
    """A model's route, with the version and without. A name may have slashes, so the longer path must come first."""
    return f"/v2/models/{{model}}/versions/{VERSION}{path}", f"/v2/models/{{model}}{path}"


def _get(*paths: str, summary: str, **options: Any) -> Endpoint[Any]:
    return Endpoint(paths=paths, summary=f"{summary} (Open Inference Protocol)", methods=("GET",), **options)


KSERVE = Dialect(
    name="kserve",
    endpoints=(
        Endpoint(
            paths=_of_model("/infer"),
            summary="Score documents for a query, as tensors (Open Inference Protocol)",
            body=KserveBody,
            reply=KserveReply,
            parse=_parse,
            render=_render,
            unpack=unpack,
            binary_header=HEADER,
            id_prefix="",
            examples={
                "a query and documents": {
                    "inputs": [
                        {"name": "query", "datatype": "BYTES", "shape": [1], "data": ["what is panda?"]},
                        {
                            "name": "documents",
                            "datatype": "BYTES",
                            "shape": [2],
                            "data": ["hi", "The giant panda is a bear."],
                        },
                    ],
                },
            },
        ),
        _get(
            *_of_model("/ready"),
            summary="Whether calls of a model are answered",
            body=KserveName,
            reply=KserveModelReady,
            parse=_parse_ready,
            render=lambda call, results, id, served: {"name": call.body.model, "ready": True},
            probe=True,
        ),
        _get(
            *_of_model(),
            summary="What a model takes and gives",
            body=KserveName,
            reply=KserveModel,
            parse=_parse_name,
            render=_model,
        ),
        _get(
            "/v2/health/live",
            summary="Whether the server works",
            body=Nothing,
            reply=KserveLive,
            parse=live,
            render=lambda call, results, id, served: {"live": True},
            probe=True,
        ),
        _get(
            "/v2/health/ready",
            summary="Whether calls are answered",
            body=Nothing,
            reply=KserveReady,
            parse=ready,
            render=lambda call, results, id, served: {"ready": True},
            probe=True,
        ),
        _get(
            "/v2",
            summary="The server",
            body=Nothing,
            reply=KserveServer,
            parse=lambda body, served: Call(body, ()),
            render=_server,
        ),
    ),
    error=KserveError,
    render_error=lambda problem: {"error": str(problem)},
    errors={**ERRORS, 404: "no model of that name"},
)

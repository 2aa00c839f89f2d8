"""TEI's `/predict` (https://huggingface.github.io/text-embeddings-inference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.core import Content, Logits, RerankRequest, RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE, by_type
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.labelled import label_names, probabilities
from rerankd.server.dialects.tei_texts import Empty, TeiCut
from rerankd.server.problems import Problem

Sequences: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[
        DocumentList[
            Annotated[
                Annotated[str, Tag("<string>")]
                | Annotated[DocumentList[str], Field(min_length=1, max_length=2), Tag("<list>")],
                Discriminator(
                    by_type(string="str", list="list"),
                    custom_error_type="sequence",
                    custom_error_message="must be a text, or a list of one text or two",
                ),
            ]
        ],
        Tag("<list>"),
    ],
    Discriminator(
        by_type(string="str", list="list"),
        custom_error_type="inputs",
        custom_error_message="must be a text, a pair of texts, or a list of lists of one text or two",
    ),
]


class TeiPredictBody(TeiCut):
    """TEI's request for the labels of texts."""

    inputs: Sequences = Field(
        description="a text; a pair `[text, text]`; or a batch, a list of lists of one text or two.",
        json_schema_extra=AT_LEAST_ONE,
        examples=["The giant panda is a bear."],
    )
    raw_scores: bool = Field(False, description="true for the model's logits in place of probabilities.")

    @property
    def single(self) -> bool:
        """Whether there is one text, or one pair, and no batch of them."""
        return isinstance(self.inputs, str) or any(isinstance(item, str) for item in self.inputs)

    def sequences(self) -> list[list[str]]:
        """The texts and pairs. Raises Problem for none, for more than two texts, and for a batch with bare texts."""
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        if not self.inputs:
            raise Empty("inputs")
        texts = [item for item in self.inputs if isinstance(item, str)]
        if not texts:
            return [item for item in self.inputs if not isinstance(item, str)]
        if len(texts) < len(self.inputs):
            raise Problem(422, "must be a pair of texts, or a batch of lists alone.", "inputs")
        if len(texts) > 2:
            raise Problem(422, 'is a pair of texts at most; a batch is a list of lists: [["a"], ["b"]].', "inputs")
        return [texts]


class TeiPrediction(BaseModel):
    """A label, and how probable it is (or its logit)."""

    score: float
    label: str


def _parse(body: TeiPredictBody, served: Served) -> Call[TeiPredictBody]:
    # Pairs of one first text become one request, as documents of one query do.
    places: dict[Content, list[int]] = {}
    sequences = body.sequences()
    for place, (*first, _) in enumerate(sequences):
        places.setdefault(text_content(first[0]) if first else (), []).append(place)
    requests = tuple(
        RerankRequest(
            first,
            tuple(text_content(sequences[place][-1]) for place in indices),
            truncation=body.cut(),
            outputs=Logits(),
        )
        for first, indices in places.items()
    )
    words = {"documents": "inputs", "query": "inputs"}
    return Call(body, requests, tuple(body.unknown()), fields=words, places=tuple(map(tuple, places.values())))


def _render(call: Call[TeiPredictBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    answers: dict[int, list[dict[str, Any]]] = {}
    for number, result in enumerate(results):
        for document in result.documents:
            logits = document.values
            scores = logits if call.body.raw_scores else probabilities(logits, "softmax")
            labelled_scores = zip(scores, label_names(served.info, len(logits)), strict=True)
            ranked = sorted(labelled_scores, key=lambda pair: -pair[0])
            answers[call.place(number, document.index)] = [{"score": score, "label": label} for score, label in ranked]
    return answers[0] if call.body.single else [answers[place] for place in sorted(answers)]


PREDICT = Endpoint(
    paths=("/predict",),
    summary="The labels of texts by a classifier (TEI)",
    body=TeiPredictBody,
    reply=list[TeiPrediction] | list[list[TeiPrediction]],
    parse=_parse,
    render=_render,
    examples={
        "a text": {"inputs": "The giant panda is a bear."},
        "a pair, in logits": {"inputs": ["what is panda?", "The giant panda is a bear."], "raw_scores": True},
        "a batch": {"inputs": [["hi"], ["what is panda?", "The giant panda is a bear."]], "truncate": True},
    },
)

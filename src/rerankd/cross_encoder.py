"""A reranker with the interface of sentence-transformers' `CrossEncoder`, for its evaluators and those of `mteb`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from rerankd.contents import ContentLike
from rerankd.reranker import Reranker


class CrossEncoder:
    """`predict(pairs)` and `rank` as in sentence-transformers, and `predict(inputs1, inputs2)` as in mteb.

    >>> evaluator = CrossEncoderRerankingEvaluator(samples)          # of sentence_transformers
    >>> evaluator(CrossEncoder("BAAI/bge-reranker-v2-m3"))
    >>> mteb.evaluate(CrossEncoder("BAAI/bge-reranker-v2-m3"), tasks)

    prompts: instructions by name; `prompt_name` chooses one
    """

    num_labels = 1

    def __init__(
        self,
        model_name: str | Reranker,
        revision: str | None = None,
        device: str | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        **options: Any,
    ) -> None:
        """model_name: a folder, a hub id, or a loaded reranker; `options` are the fields of `LoadOptions`.

        Raises ModelError if the model cannot be found, read or served.
        """
        if isinstance(model_name, Reranker):
            self.reranker = model_name
        else:
            chosen = {
                **options,
                **({"device": device} if device else {}),
                **({"revision": revision} if revision else {}),
            }
            self.reranker = Reranker(model_name, **chosen)
        self.revision = revision
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.model_card_data = _Card()

    def predict(
        self,
        inputs: Any = None,
        inputs2: Any = None,
        *,
        inputs1: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress_bar: bool | None = False,
        activation_fn: Callable[[Any], Any] | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """The scores of pairs, float32 [pairs]; for a single pair one score.

        inputs: (query, document) pairs, or one pair
        inputs1, inputs2: for mteb, batches of queries and of documents in the same order
        prompt, prompt_name: an instruction, or the name of one in `prompts`
        activation_fn: torch.nn.Identity() for logits; None for the model's own scores
        convert_to_tensor, convert_to_numpy: the type of the result: a tensor, an array, or else a list
        others: accepted without effect: sizes of batches, which the engine chooses itself, and mteb's description of
            the task

        Raises ValueError for another activation, and for an unknown name of a prompt.
        """
        first = inputs1 if inputs1 is not None else inputs
        single = inputs2 is None and _is_pair(first)
        pairs: list[Any]
        if inputs2 is not None:
            pairs = list(zip(_flat(first), _flat(inputs2), strict=True))
        else:
            pairs = [first] if single else list(first)
        scores = self.reranker.score(
            pairs,
            self._instruction(prompt, prompt_name),
            activation=_activates(activation_fn),
            show_progress=bool(show_progress_bar),
        )
        values = np.asarray(scores, dtype=np.float32)
        result: Any = values[0] if single else values
        if convert_to_tensor:
            import torch

            return torch.as_tensor(result)
        return result if convert_to_numpy or single else list(values)

    def rank(
        self,
        query: ContentLike,
        documents: Sequence[ContentLike],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress_bar: bool | None = False,
        activation_fn: Callable[[Any], Any] | None = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Documents by falling score, as dictionaries of `corpus_id`, `score` and, with `return_documents`, `text`."""
        result = self.reranker.rerank(
            query,
            documents,
            self._instruction(prompt, prompt_name),
            top_k,
            activation=_activates(activation_fn),
            show_progress=bool(show_progress_bar),
        )
        return [
            {
                "corpus_id": document.index,
                "score": np.float32(document.score),
                **({"text": documents[document.index]} if return_documents else {}),
            }
            for document in result.documents
        ]

    @property
    def mteb_model_meta(self) -> Any:
        """The description of the model that mteb stores with its results."""
        from mteb.models import ModelMeta

        info = self.reranker.info
        name = info.model if info.model.count("/") == 1 else f"rerankd/{info.path.name}"
        facts = {
            "loader": type(self),
            "name": name,
            "revision": self.revision or "no_revision_available",
            "max_tokens": info.max_model_len,
            "model_type": ["cross-encoder"],
            "use_instructions": info.takes_instruction,
            "modalities": ["image", "text"] if info.supports_vision else ["text"],
        }
        return ModelMeta.create_empty(overwrites=facts)

    def close(self) -> None:
        self.reranker.close()

    def __enter__(self) -> CrossEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _instruction(self, prompt: str | None, name: str | None) -> str | None:
        if prompt is not None:
            return prompt
        name = name if name is not None else self.default_prompt_name
        if name is None:
            return None
        if name not in self.prompts:
            raise ValueError(f"prompt_name: there is no prompt {name!r}; there are {', '.join(self.prompts) or 'none'}")
        return self.prompts[name]


class _Card:
    """Accepts the entries that sentence-transformers' evaluators write into a model's card; nothing reads them."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: Mapping[str, Any], *where: Any, **more: Any) -> None:
        self.metrics.update(metrics)


def _is_pair(value: Any) -> bool:
    """Whether a value is one pair of texts, not a list of pairs."""
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, (str, Mapping)) for text in value)
    )


def _activates(function: Callable[[Any], Any] | None) -> bool:
    """Whether the caller wants scores, not logits. Raises ValueError for any other function."""
    if function is None:
        return True
    if type(function).__name__ == "Identity":
        return False
    raise ValueError("activation_fn: give torch.nn.Identity() for logits, or nothing for the model's own scores")


def _flat(batches: Iterable[Any]) -> Iterator[ContentLike]:
    """The texts, and the images, of mteb's batches."""
    for batch in batches:
        texts, images = batch.get("text"), batch.get("image")
        for place in range(len(texts if texts is not None else images)):
            content = {"text": texts[place]} if texts is not None and texts[place] else {}
            if images is not None and images[place] is not None:
                content["image"] = images[place]
            yield content if "image" in content else content.get("text", "")

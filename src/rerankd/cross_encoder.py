"""A reranker with the interface of sentence-transformers' `CrossEncoder`, for its users, its evaluators and `mteb`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from rerankd.contents import ContentLike
from rerankd.core import Truncation
from rerankd.reranker import Reranker

log = logging.getLogger("rerankd")

ELSEWHERE = {
    "modules": "give a folder or a hub id",
    "num_labels": "the checkpoint says how many labels there are",
    "cache_folder": "set the variable HF_HOME",
    "local_files_only": "set the variable HF_HUB_OFFLINE to 1",
    "token": "set the variable HF_TOKEN",
    "processor_kwargs": "give max_length",
    "tokenizer_kwargs": "give max_length",
    "config_kwargs": "give hf_overrides",
}
"""Arguments of sentence-transformers' constructor -> what has their effect here."""
HARMLESS = {
    "batch_size",
    "num_workers",
    "chunk_size",
    "apply_softmax",
    "task_metadata",
    "hf_split",
    "hf_subset",
    "prompt_type",
}
"""Arguments of calls that change no score of one label: the engine forms its own batches; the last four are mteb's."""


class CrossEncoder:
    """`predict(pairs)` and `rank` as in sentence-transformers, and `predict(inputs1, inputs2)` as in mteb.

    >>> model = CrossEncoder("BAAI/bge-reranker-v2-m3", dtype="float32")
    >>> model.predict([("what is panda?", "hi"), ("what is panda?", "The giant panda is a bear.")])

    activation_fn: applied to the logits; None for the model's own scores
    prompts: instructions by name; `prompt_name` chooses one

    A model has one score for each pair; a classifier of two labels gives the probability of relevance. The dtype is
    `auto` by default, where sentence-transformers has float32.
    """

    num_labels = 1

    def __init__(
        self,
        model_name_or_path: str | Reranker,
        *,
        device: Any = None,
        revision: str | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """model_name_or_path: a folder, a hub id, or a loaded reranker

        max_length: the most tokens of a pair
        model_kwargs: its `dtype` (or `torch_dtype`) is that of `LoadOptions`
        options: fields of `LoadOptions`

        Raises ModelError if the model cannot be found, read or served, and ValueError for arguments of
        sentence-transformers without a counterpart here.
        """
        for name, way_out in ELSEWHERE.items():
            value = options.pop(name, None)
            if value not in (None, False, {}) and (name, value) != ("num_labels", 1):
                raise ValueError(f"{name}: is not supported; {way_out}")
        if isinstance(model_name_or_path, Reranker):
            self.reranker = model_name_or_path
        else:
            given = {
                "device": None if device is None else str(device),
                "revision": revision,
                "dtype": _dtype(model_kwargs or {}),
            }
            chosen = {name: value for name, value in given.items() if value is not None}
            self.reranker = Reranker(model_name_or_path, **{**chosen, **options})
        self.revision = revision
        self.max_length = max_length
        self.activation_fn = activation_fn
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.model_card_data = _Card()

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        return self._max_length or self.reranker.info.max_model_len

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self._max_length = value

    max_seq_length = max_length

    def predict(
        self,
        inputs: Any = None,
        prompt_name: Any = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        *,
        inputs1: Any = None,
        inputs2: Any = None,
        **others: Any,
    ) -> Any:
        """The scores of pairs, float32 [pairs]; for a single pair one score.

        inputs: (query, document) pairs, or one pair
        inputs1, inputs2: for mteb, batches of queries and of documents in the same order; mteb gives them by place too
        prompt, prompt_name: an instruction, or the name of one in `prompts`. For a model that takes none, it is put
            before the query, as in sentence-transformers
        activation_fn: applied to the logits, such as torch.nn.Identity(); None for that of this object
        convert_to_tensor, convert_to_numpy: the type of the result: a tensor, an array, or else a list of tensors
        others: `max_length`, and `processing_kwargs` with `{"text": {"max_length": ...}}`, limit the pairs of this
            call; `activation_fct` and `sentences` are older names. A warning in the log names those without effect

        Raises ValueError for an unknown name of a prompt, for another device, and for what is no pair.
        """
        first = next((given for given in (inputs1, inputs, others.pop("sentences", None)) if given is not None), ())
        if prompt_name is not None and not isinstance(prompt_name, str):
            inputs2, prompt_name = prompt_name, None
        single = inputs2 is None and _is_pair(first)
        pairs: list[Any] = [first] if single else list(first)
        if inputs2 is not None:
            pairs = list(zip(_flat(first), _flat(inputs2), strict=True))
        function = activation_fn or others.pop("activation_fct", None)
        scores = self._scores(pairs, self._prompt(prompt, prompt_name), function, show_progress_bar, others)
        values = np.asarray(scores, dtype=np.float32)
        if convert_to_tensor or not convert_to_numpy:
            import torch

            tensor = torch.as_tensor(values)
            return tensor[0] if single else tensor if convert_to_tensor else list(tensor)
        return values[0] if single else values

    def rank(
        self,
        query: ContentLike,
        documents: Sequence[ContentLike],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Documents by falling score, as dictionaries of `corpus_id`, `score` and, with `return_documents`, `text`.

        The other arguments are those of `predict`.
        """
        function = activation_fn or others.pop("activation_fct", None)
        pairs = [(query, document) for document in documents]
        scores = self._scores(pairs, self._prompt(prompt, prompt_name), function, show_progress_bar, others)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [
            {
                "corpus_id": place,
                "score": scores[place],
                **({"text": documents[place]} if return_documents else {}),
            }
            for place in order[:top_k]
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

    def _scores(
        self,
        pairs: Sequence[Any],
        prompt: str | None,
        function: Callable[[Any], Any] | None,
        shows_progress: bool | None,
        others: dict[str, Any],
    ) -> list[float]:
        function = function or self.activation_fn
        limit = self._limit(others)
        if prompt is not None and not self.reranker.info.takes_instruction:
            pairs, prompt = [_prefixed(pair, prompt) for pair in pairs], None
        scores = self.reranker.score(
            pairs, prompt, truncation=limit, activation=function is None, show_progress=bool(shows_progress)
        )
        if function is None:
            return scores
        import torch

        activated: list[float] = function(torch.tensor(scores, dtype=torch.float32)[:, None])[:, 0].tolist()
        return activated

    def _limit(self, others: dict[str, Any]) -> Truncation:
        """The limit of a call. Raises ValueError for another device, and warns of arguments without effect."""
        processing = (others.pop("processing_kwargs", None) or {}).get("text") or {}
        max_tokens = others.pop("max_length", None) or processing.get("max_length") or self._max_length
        device, pool = others.pop("device", None), others.pop("pool", None)
        if pool is not None or (device is not None and str(device) != self.reranker.info.device):
            raise ValueError(
                f"device: the model is on {self.reranker.info.device}; give the device to the constructor, or "
                "data_parallel_size for several processes"
            )
        unknown = [name for name, value in others.items() if value is not None and name not in HARMLESS]
        if unknown:
            log.warning("CrossEncoder: arguments without effect here: %s", ", ".join(sorted(unknown)))
        return Truncation(max_tokens=max_tokens)

    def _prompt(self, prompt: str | None, name: str | None) -> str | None:
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


def _dtype(model_kwargs: Mapping[str, Any]) -> str | None:
    """The dtype that sentence-transformers gives to transformers. Raises ValueError for other entries."""
    others = sorted(set(model_kwargs) - {"dtype", "torch_dtype"})
    if others:
        raise ValueError(f"model_kwargs: {', '.join(others)}: only dtype has an effect here; leave the others out")
    given = next((value for value in model_kwargs.values() if value is not None), None)
    return None if given is None else str(given).removeprefix("torch.")


def _prefixed(pair: Any, prompt: str) -> Any:
    """A pair with the prompt before its query, if that is a text."""
    if isinstance(pair, (list, tuple, np.ndarray)) and len(pair) == 2 and isinstance(pair[0], str):
        return prompt + pair[0], pair[1]
    return pair


def _is_pair(value: Any) -> bool:
    """Whether a value is one pair of texts, not a list of pairs."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and len(value) == 2 and value.dtype.kind in "UO"
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, (str, Mapping)) for text in value)
    )


def _flat(batches: Iterable[Any]) -> Iterator[ContentLike]:
    """The texts, and the images, of mteb's batches."""
    for batch in batches:
        texts, images = batch.get("text"), batch.get("image")
        for place in range(len(texts if texts is not None else images)):
            content = {"text": texts[place]} if texts is not None and texts[place] else {}
            if images is not None and images[place] is not None:
                content["image"] = images[place]
            yield content if "image" in content else content.get("text", "")

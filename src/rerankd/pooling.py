"""Parameters of vLLM's `LLM.score` for scores and for the length of prompts.

Reference: vLLM's `pooling_params.py` (0.8 to 0.32) and `renderers/params.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rerankd.core import InvalidRequest, Truncation

CUT: Mapping[Any, bool] = {
    True: True,
    "longest_first": True,
    "only_second": True,
    False: False,
    "do_not_truncate": False,
}
"""transformers' values of `truncation`, and whether each of them cuts a prompt that does not fit."""
INSTRUCTION = ("instruction", "instruct")
EXTRA = ("max_tokens_per_doc", "max_tokens_per_query", "chat_template_kwargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """vLLM's `PoolingParams`, with the fields of older versions.

    use_activation: False for the model's logits in place of scores; `activation` and `softmax` are its older names
    truncate_prompt_tokens: the most tokens of a prompt; -1 for the model's own limit
    dimensions: for embeddings only; `score` accepts None alone
    extra_kwargs: `max_tokens_per_doc`, `max_tokens_per_query` (0 for no limit), and `chat_template_kwargs` with an
        `instruction` or `instruct`
    The other fields have no effect on a score.
    """

    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    truncate_prompt_tokens: int | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    task: str | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    requires_token_ids: bool | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_kwargs: Mapping[str, Any] | None = None
    output_kind: Any = None

    def activated(self) -> bool:
        """Whether the caller asks for scores, not logits."""
        switches = (self.use_activation, self.activation, self.softmax)
        return next((switch for switch in switches if switch is not None), True) is not False

    def tokens_per(self, text_kind: str) -> int | None:
        """The limit of texts in tokens, for "doc" or "query". Raises InvalidRequest for a value that is no limit."""
        limit = (self.extra_kwargs or {}).get(f"max_tokens_per_{text_kind}") or 0
        if not isinstance(limit, int) or limit < 0:
            name = f"pooling_params.extra_kwargs.max_tokens_per_{text_kind}"
            raise InvalidRequest(name, f"must be a number of tokens, 0 for no limit, not {limit!r}")
        return limit or None

    def instruction(self) -> str | None:
        """The instruction, if there is one."""
        kwargs = self._template_kwargs()
        return next((kwargs[name] for name in INSTRUCTION if kwargs.get(name) is not None), None)

    def without_effect(self) -> Iterator[str]:
        """The names of given fields that have no effect on a score. Raises InvalidRequest for `dimensions`."""
        if self.dimensions is not None:
            raise InvalidRequest("pooling_params.dimensions", "is for embeddings; leave it out")
        heard = {"use_activation", "activation", "softmax", "truncate_prompt_tokens", "extra_kwargs"}
        for field in fields(self):
            if field.name not in heard and getattr(self, field.name) is not None:
                yield f"pooling_params.{field.name}"
        for name, value in (self.extra_kwargs or {}).items():
            if name not in EXTRA and value is not None:
                yield f"pooling_params.extra_kwargs.{name}"
        for name in self._template_kwargs():
            if name not in INSTRUCTION:
                yield f"pooling_params.extra_kwargs.chat_template_kwargs.{name}"

    def _template_kwargs(self) -> Mapping[str, Any]:
        return (self.extra_kwargs or {}).get("chat_template_kwargs") or {}


@dataclass(frozen=True, slots=True)
class Asked:
    """The settings of a call for prompts and scores, and its arguments without effect."""

    truncation: Truncation
    activation: bool
    instruction: str | None
    ignored: tuple[str, ...]


def asked(
    limit: int,
    truncate_prompt_tokens: int | None,
    pooling_params: PoolingParams | None,
    tokenization_kwargs: Mapping[str, Any] | None,
) -> Asked:
    """The settings of a call from all its arguments. Of several `truncate_prompt_tokens` the first one applies.

    limit: the model's own limit, in tokens

    Raises InvalidRequest for a value of a wrong type or beyond the limit.
    """
    params = PoolingParams() if pooling_params is None else pooling_params
    if not isinstance(params, PoolingParams):
        raise InvalidRequest("pooling_params", "must be one `rerankd.PoolingParams`")
    kwargs = {name: value for name, value in (tokenization_kwargs or {}).items() if value is not None}
    allowed = kwargs.pop("truncation", True)
    if not isinstance(allowed, (bool, str)) or allowed not in CUT:
        raise InvalidRequest("tokenization_kwargs.truncation", f"must be true or false, not {allowed!r}")
    side = kwargs.pop("truncation_side", None)
    if side not in (None, "left", "right"):
        raise InvalidRequest("tokenization_kwargs.truncation_side", f"must be left or right, not {side!r}")
    max_length = kwargs.pop("max_length", None)
    lengths = {
        "truncate_prompt_tokens": truncate_prompt_tokens,
        "tokenization_kwargs.truncate_prompt_tokens": kwargs.pop("truncate_prompt_tokens", None),
        "pooling_params.truncate_prompt_tokens": params.truncate_prompt_tokens,
        # As transformers has it, it bounds nothing where nothing may be cut.
        "tokenization_kwargs.max_length": max_length if CUT[allowed] else None,
    }
    checked = [_length(name, length, limit) for name, length in lengths.items() if length is not None]
    longest = checked[0] if checked else None
    truncation = Truncation(
        max_tokens=None if longest == -1 else longest,
        max_tokens_per_doc=params.tokens_per("doc"),
        max_tokens_per_query=params.tokens_per("query"),
        allowed=CUT[allowed],
        side=side,
    )
    ignored = (*params.without_effect(), *(f"tokenization_kwargs.{name}" for name in kwargs))
    return Asked(truncation, params.activated(), params.instruction(), ignored)


def no_adapter(lora_request: object) -> None:
    """Raises InvalidRequest for any adapter; a list may have one for each prompt."""
    listed = lora_request if isinstance(lora_request, (list, tuple)) else [lora_request]
    if any(adapter is not None for adapter in listed):
        problem = "adapters are not supported; merge the adapter into its model and score with the result"
        raise InvalidRequest("lora_request", problem)


def _length(name: str, length: object, limit: int) -> int:
    if not isinstance(length, int) or isinstance(length, bool) or not (length == -1 or 0 < length <= limit):
        raise InvalidRequest(name, f"must be -1 or between 1 and {limit}, this model's limit, not {length!r}")
    return length

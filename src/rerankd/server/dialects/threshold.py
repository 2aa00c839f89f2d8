"""The fields that leave documents of a low score out of an answer. No API has them; every rerank body here does."""

from __future__ import annotations

from pydantic import Field

from rerankd.schemas.contents import Open
from rerankd.server.problems import Problem


class Thresholded(Open):
    """A body that may leave documents out."""

    min_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="the lowest score of a document to return (the lowest logit, if logits are asked for); the header "
        "X-Rerankd-Below-Min-Score names the documents that are left out.",
        examples=[None],
    )
    score_threshold: float | None = Field(
        None, allow_inf_nan=False, description="another name of `min_score`.", examples=[None]
    )

    def lowest(self) -> float | None:
        """The lowest score that is wanted. Raises Problem for two that differ."""
        if self.min_score is None or self.score_threshold is None:
            return self.score_threshold if self.min_score is None else self.min_score
        if self.min_score != self.score_threshold:
            raise Problem(400, "differs from `min_score`; give one of them.", "score_threshold")
        return self.min_score

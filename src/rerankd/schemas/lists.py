"""Lists in bodies. Their elements are counted before validation, and validation stops at the first bad element.

Otherwise a million token ids in place of texts would make a million errors.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from rerankd.limits import LimitName, RequestLimits

T = TypeVar("T")
OVER_LIMIT = "over_limit"


class Counted:
    """The validation context of a body: how many elements its lists may have."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._counts: dict[LimitName, int] = {}

    def check(self, name: LimitName, count: int) -> None:
        """Refuse a list of `count` elements that is over a limit."""
        if count > getattr(self._limits, name):
            raise PydanticCustomError(OVER_LIMIT, "{problem}", {"problem": f"holds {self._limits.exceeded(name)}"})

    def check_sum(self, name: LimitName, count: int) -> None:
        """Refuse lists of one name that have too many elements in sum. `count`: the elements of a further list."""
        self._counts[name] = self._counts.get(name, 0) + count
        self.check(name, self._counts[name])


def _at_most(name: LimitName, together: bool = False) -> BeforeValidator:
    """Refuse lists of more elements than a limit; a body that is validated without limits has none."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list) and isinstance(info.context, Counted):
            (info.context.check_sum if together else info.context.check)(name, len(value))
        return value

    return BeforeValidator(check)


DocumentList: TypeAlias = Annotated[list[T], Field(fail_fast=True), _at_most("documents")]
PartList: TypeAlias = Annotated[list[T], Field(min_length=1, fail_fast=True), _at_most("parts", together=True)]
FieldList: TypeAlias = Annotated[list[T], Field(fail_fast=True), _at_most("fields")]
LabelList: TypeAlias = Annotated[list[T], Field(fail_fast=True), _at_most("labels")]
IdList: TypeAlias = Annotated[list[T], Field(fail_fast=True), _at_most("tokens", together=True)]

"""A watch over `Kernels.recorded`: an error where torch reads or writes a tensor that a recorded operation uses.

A blocked tensor refuses such uses by itself. A tensor does not know that an operation has yet to read or write it. So
the whole test suite runs under this watch (see conftest.py), which raises an error where a model makes such a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import BlockedTensor

Span = tuple[int, int]
"""Addresses: the first byte and the one behind the last."""
SHAPES_ONLY = {"aten::empty_like", "aten::new_empty", "aten::new_empty_strided"}
"""Functions that take a tensor and read no value of it."""
HIDDEN = {"tolist", "numpy", "__array__", "__dlpack__", "__repr__", "__format__", "__reduce_ex__"}
"""Methods that read values where no dispatcher sees it."""


def watched(recorded: Callable[[Kernels], AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
    """`Kernels.recorded` under watch."""

    @contextmanager
    def under_watch(kernels: Kernels) -> Iterator[None]:
        with recorded(kernels):
            used = _Recorded(kernels)
            with _Calls(used), _Methods(used):
                yield

    return under_watch


class _Recorded:
    """Where the tensors lie that the operations recorded so far read and write."""

    def __init__(self, kernels: Kernels) -> None:
        assert kernels._recording is not None
        self._recording = kernels._recording
        self._spans: tuple[set[Span], set[Span]] = (set(), set())
        self._seen = [0, 0]

    def check(self, tensor: Tensor, name: object, writes: bool) -> None:
        """RuntimeError where the function of this name must not read, or write, the tensor yet."""
        for i, kept in enumerate((self._recording.writes, self._recording.reads)):
            self._spans[i].update(span for one in kept[self._seen[i] :] for span in _spans(one))
            self._seen[i] = len(kept)
        start, stop = _extent(tensor)
        for spans in self._spans if writes else self._spans[:1]:
            if any(start < end and begin < stop for begin, end in spans):
                does, yet = ("writes", "use") if writes else ("reads", "write")
                raise RuntimeError(
                    f"{name} {does} a tensor of shape {list(tensor.shape)} that an operation has yet to {yet}: the "
                    "operation is recorded and not computed yet."
                )


def _extent(tensor: Tensor) -> Span:
    values = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + (values * tensor.itemsize if tensor.numel() else 0)


def _spans(used: object) -> Iterator[Span]:
    if isinstance(used, Tensor):
        yield _extent(used)
    elif isinstance(used, BlockedTensor):
        yield used.buffer.address, used.buffer.address + used.buffer.size
    elif isinstance(used, tuple):
        for one in used:
            yield from _spans(one)


class _Calls(TorchDispatchMode):
    """All that torch computes."""

    def __init__(self, recorded: _Recorded) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        views = []
        for i, argument in enumerate(schema.arguments):
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in given if isinstance(given, (list, tuple)) else [given]:
                if not isinstance(tensor, Tensor) or schema.name in SHAPES_ONLY:
                    continue
                if argument.alias_info is not None and not argument.alias_info.is_write:
                    views.append(tensor)
                else:
                    self._recorded.check(tensor, func, writes=argument.alias_info is not None)
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, (list, tuple)) and result else result
        for tensor in views:
            # `to`, `reshape` and their like answer a view where they can, and a copy, which reads, where not.
            if isinstance(first, Tensor) and first.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                self._recorded.check(tensor, func, writes=False)
        return result


class _Methods(TorchFunctionMode):
    """Methods in which torch hands values to others."""

    def __init__(self, recorded: _Recorded) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HIDDEN:
            self._recorded.check(args[0], func.__name__, writes=False)
        return func(*args, **(kwargs or {}))

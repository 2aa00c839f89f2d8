"""Operations as `operations.c` reads them: an operation's number, then the struct of its operands in `operations.h`."""

from __future__ import annotations

from functools import partial
from struct import Struct

from torch import Tensor

from rerankd.backends.cpu.rows import COLUMN_BLOCK_BYTES, BlockedTensor, Rows

EPILOGUES = (None, "gelu", "gelu_tanh", "quick_gelu", "gated", "residual")
"""The epilogues of a GEMM, in the order of their numbers."""
MATRIX = Struct("3q")
"""`matrix` of common.h."""
NO_MATRIX = (0, 0, 0)
LOOKUP = Struct("3q")
"""`lookup` of operations.h."""
OPERATIONS = {
    "rms_norm": "6qd3q",
    "norm_rope": "7qd5q",
    "add_layer_norm": "10qd6q",
    "embed_layer_norm": "13qd6q",
    "to_blocked": "8q",
    "index_select": "10q",
    "quantize": "10q",
    "gemm": "19q",
    "attention": "16qd3q",
}
"""The structs of operations.h, in the order of the operations' numbers."""
rms_norm, norm_rope, add_layer_norm, embed_layer_norm, to_blocked, index_select, quantize, gemm, attention = (
    partial(Struct("q" + operands).pack, number) for number, operands in enumerate(OPERATIONS.values())
)
"""Functions from an operation's operands to its descriptor."""
ABI = 5
"""RERANKD_ABI of operations.h."""
AGREED = {
    "abi": ABI,
    "matrix": MATRIX.size,
    "lookup": LOOKUP.size,
    "block": 6 * 8,
    "epilogue": len(EPILOGUES),
    **{name: Struct(operands).size for name, operands in OPERATIONS.items()},
}
"""The sizes of structs, in bytes, and the numbers that the library must agree on, in the order of operations.c."""


def matrix(x: Rows) -> tuple[int, int, int]:
    """The members of a `matrix`: an address, values from a row to the next, and values from a column block to the next.

    ValueError for a tensor whose rows are not contiguous.
    """
    columns = COLUMN_BLOCK_BYTES // x.dtype.itemsize
    if isinstance(x, BlockedTensor):
        return x.address, columns, x.block_stride // x.dtype.itemsize
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ValueError(f"The rows of a tensor of shape {list(x.shape)} are not contiguous.")
    return x.data_ptr(), x.stride(0), columns


def address(tensor: Tensor | None) -> int:
    """The address of a contiguous tensor; 0 for None. ValueError for a tensor that is not contiguous."""
    if tensor is None:
        return 0
    if not tensor.is_contiguous():
        raise ValueError(f"A tensor of shape {list(tensor.shape)} is not contiguous.")
    return tensor.data_ptr()

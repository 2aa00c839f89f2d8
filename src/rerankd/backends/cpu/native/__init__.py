"""What the C files here compute, as functions of tensors: bfloat16 on a CPU with AVX512-BF16, by AMX where it has that.

The library is built with the package where a C compiler is at hand. Where it is missing, or the processor is another,
`Kernels.load` answers None, and everything here is computed by torch's own functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from struct import Struct
from threading import Lock, get_ident
from typing import NamedTuple

import torch
from torch import Tensor

from rerankd.backends.cpu.buffers import Buffer, BufferPool, Pending
from rerankd.backends.cpu.native.sources import digest
from rerankd.backends.cpu.rows import COLUMN_BLOCK_BYTES, BlockedTensor, Rows
from rerankd.backends.cpu.runs import runs_of
from rerankd.core import RerankdError
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.rotary import Rotation

_LANES = 16
_BLOCK_COLUMNS = 32
HAS_VECTORS, HAS_TILES = 1, 2
"""What a processor has, as a sum: AVX512 with products of bfloat16 and of 8 bits; AMX."""
_EPILOGUES = (None, "gelu", "gelu_tanh", "gated", "residual")
_RECORDED = (
    "These rows belong to operations that are recorded and not computed yet. Read or write them after the scope of "
    "`Kernels.recorded`, or inside of it by operations of the kernels."
)
_LOST = (
    "These rows were never computed: the scope of `Kernels.recorded` that was to write them ended with an error. "
    "Compute them again, in rows of their own."
)
_ONE_THREAD = "Another thread is using these kernels. Load kernels for each thread that computes."


class KernelsError(RerankdError):
    """The compiled kernels do not fit the Python code that calls them."""


class Int8Rows(NamedTuple):
    """Rows as 8-bit integers, as products read them: x = (code - zero) * step.

    codes: uint8 [rows, width]; steps, zeros: float32 [rows]
    """

    codes: BlockedTensor
    steps: Tensor
    zeros: Tensor


class PackedWeight(NamedTuple):
    """A weight as products read it: bfloat16 or int8 [outputs, inputs], in the order that the product reads.

    scales, sums: float32 [outputs], what a step of each 8-bit output is and its weights' sum
    """

    packed: Tensor
    scales: Tensor | None = None
    sums: Tensor | None = None


class CommandList:
    """Operations that are computed together, and what has to stay in memory until then.

    They are computed in order. So room that one of them was the last to use is free for those that come after it, which
    then find it in the caches: it is lent out again as soon as nothing here refers to it.

    reads, writes: what operations read and write, but for rows in such room
    """

    def __init__(self, pool: BufferPool) -> None:
        self.operations: list[bytes] = []
        self.reads: list[object] = []
        self.writes: list[object] = []
        self.written = Pending(_RECORDED)
        self._read = Pending(_RECORDED)
        self._pool = pool
        self._thread = get_ident()

    def check_thread(self) -> None:
        """RuntimeError in another thread than the one that opened the scope."""
        if get_ident() != self._thread:
            raise RuntimeError(_ONE_THREAD)

    def record(self, operation: bytes, reads: Sequence[object], writes: Sequence[object]) -> None:
        self.check_thread()
        for things, pending, kept in ((reads, self._read, self.reads), (writes, self.written, self.writes)):
            for x in things:
                if isinstance(x, BlockedTensor):
                    buffer = x.buffer
                    if buffer.pending is not self.written and buffer.pending is not pending:
                        if buffer.pending is not self._read:
                            x.check()
                        buffer.pending = pending
                    if buffer.pool is self._pool:
                        continue
                kept.append(x)
        self.operations.append(operation)

    def close(self, lost: str | None) -> None:
        """Let go of all. lost: why the rows that operations write have no values; None where these were computed."""
        self._read.why, self.written.why = None, lost
        for kept in (self.operations, self.reads, self.writes):
            kept.clear()


class Kernels:
    """The loaded library, for one thread at a time: RuntimeError where two are seen to use it.

    Tensors lie on the CPU, contiguous in their last dimension, in bfloat16 unless noted.
    """

    def __init__(self, library: ctypes.CDLL, features: int) -> None:
        self.library = library
        self.has_tiles = bool(features & HAS_TILES)
        self._recording: CommandList | None = None
        self._pool = BufferPool()
        self._computing = Lock()
        _check_agreement(library)
        for name, arguments in _ARGUMENTS.items():
            getattr(library, f"rerankd_{name}").argtypes = arguments

    @classmethod
    def load(cls) -> Kernels | None:
        """The library, or None where it was not built or has nothing for this processor.

        KernelsError for a library that was compiled from other sources than lie beside it, or from ones that this file
        does not fit.
        """
        for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
            library = ctypes.CDLL(str(path))
            _check_sources(library, path)
            features = library.rerankd_features()
            return cls(library, features) if features else None
        return None

    @staticmethod
    def fit_gemm(outputs: int, inputs: int) -> bool:
        """Whether the products can take a weight of this shape here."""
        return inputs % 64 == 0 and outputs % _BLOCK_COLUMNS == 0

    @staticmethod
    def fit_blocked(width: int) -> bool:
        """Whether rows of this width are handed on in strips."""
        return width % _BLOCK_COLUMNS == 0

    @staticmethod
    def fit(*widths: int) -> bool:
        """Whether rows of these widths can be read a whole register at a time."""
        return all(width % _LANES == 0 for width in widths)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Operations called for in this scope are computed by one call at its end: none of their values is there yet.

        While an operation runs, Python's own code and data fall out of the caches. To call for the next one then takes
        several times as long as to call for both on end, and no core computes anything meanwhile.

        Nothing but these operations may read or write in this scope what one of them reads or writes, or rows that are
        lent out in it, in whose memory there may be what one of them still reads. Rows in strips and functions that
        compute at once raise RuntimeError. A tensor cannot know: the tests watch torch's own functions for those.

        After an error in the scope, or in computing, rows that an operation was to write raise RuntimeError for good.
        Scopes do not nest.
        """
        scope = self._recording
        if scope is not None:
            scope.check_thread()
            raise RuntimeError("Operations are recorded already: scopes of `Kernels.recorded` do not nest.")
        scope = self._recording = CommandList(self._pool)
        self._pool.pending = scope.written
        lost: str | None = _LOST
        try:
            yield
            self._run(b"".join(scope.operations))
            lost = None
        finally:
            self._recording = self._pool.pending = None
            scope.close(lost)
            self._pool.trim()

    def _compute(self, operation: bytes, reads: Sequence[object], writes: Sequence[object]) -> None:
        """Compute an operation that reads and writes these, or record it in the scope of `together`."""
        scope = self._recording
        if scope is not None:
            scope.record(operation, reads, writes)
            return
        for x in (*reads, *writes):
            if isinstance(x, BlockedTensor):
                x.check()
        self._run(operation)

    def _run(self, operations: bytes) -> None:
        run, threads = self.library.rerankd_run, torch.get_num_threads()
        code = self._call(run, threads, self.has_tiles, len(operations), operations)
        if code == _NO_MEMORY:
            raise MemoryError("No memory for attention over a batch.")
        if code:
            raise KernelsError(f"The compiled kernels cannot read a list of operations: {_PROBLEMS[code]}.")

    def _call(self, function: Callable[..., int], *arguments: object) -> int:
        if not self._computing.acquire(blocking=False):
            raise RuntimeError(_ONE_THREAD)
        try:
            return function(*arguments)
        finally:
            self._computing.release()

    def _at_once(self, function: Callable[..., int], *arguments: object) -> int:
        """A function that computes at once what is called for, and so not while operations are recorded."""
        if self._recording is not None:
            raise RuntimeError(
                f"`{function.__name__}` computes at once, and operations before it are recorded and not computed yet. "
                "Call for it outside of the scope of `Kernels.recorded`."
            )
        return self._call(function, *arguments)

    def _acquire(self, size: int) -> Buffer:
        scope = self._recording
        if scope is not None:
            scope.check_thread()
        return self._pool.acquire(size)

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Rows:
        """x / sqrt(mean(x^2) + eps) * weight for x [rows, width]."""
        rows, width = x.shape
        out = self.empty_rows(rows, width)
        self._compute(_rms_norm(rows, width, *_matrix(x), _at(weight), eps, *_matrix(out)), (x, weight), (out,))
        return out

    def empty_rows(self, count: int, width: int) -> Rows:
        """Buffer for bfloat16 rows in the form that products read and write here."""
        if self.fit_blocked(width):
            return BlockedTensor.empty(count, width, allocate=self._acquire)
        return torch.empty(count, width, dtype=torch.bfloat16)

    def norm_rope(self, x: Rows, weight: Tensor, eps: float, rotation: Rotation, out: Rows) -> None:
        """RMSNorm over each head of x [rows, heads * head_dim], turned by `rotation`, into `out` of the same shape.

        A head's half is a multiple of 16 wide.
        """
        rows, width = x.shape
        head_dim = len(weight)
        angles = _at(rotation.cos), _at(rotation.sin)
        operation = _norm_rope(rows, width // head_dim, head_dim, *_matrix(x), _at(weight), eps, *angles, *_matrix(out))
        self._compute(operation, (x, weight, rotation), (out,))

    def add_layer_norm(
        self, x: Tensor, delta: Rows, weight: Tensor, bias: Tensor, eps: float, out: Tensor, rounded: Rows
    ) -> None:
        """LayerNorm of float32 x [rows, width] and bfloat16 delta, by float32 weights: `out` float32 and `rounded`."""
        weights = _at(weight), _at(bias), eps
        operation = _add_layer_norm(*x.shape, _at(x), *_matrix(delta), *weights, _at(out), *_matrix(rounded))
        self._compute(operation, (x, delta, weight, bias), (out, rounded))

    def embed_layer_norm(
        self,
        tables: Sequence[tuple[Tensor, Tensor | None]],
        weight: Tensor,
        bias: Tensor,
        eps: float,
        out: Tensor,
        rounded: Rows,
    ) -> None:
        """The same LayerNorm of the sum, in float32, of rows of three bfloat16 tables [any, width].

        tables: each with its rows' numbers, int64 [rows], or None for its first row; IndexError where it lacks one
        """
        rows, width = out.shape
        if isinstance(rounded, BlockedTensor):
            rounded.check()
        lookups = b"".join(_LOOKUP.pack(_at(table), len(table), _at(numbers)) for table, numbers in tables)
        to = _MATRIX.pack(*_matrix(rounded))
        to_norm = _at(weight), _at(bias), eps, _at(out)
        embed = self.library.rerankd_embed_layer_norm
        failed = self._at_once(embed, torch.get_num_threads(), rows, width, lookups, *to_norm, to)
        if failed:
            raise IndexError(
                f"A token's number lies outside of the model's tables of {[len(x) for x, _ in tables]} rows."
            )

    def to_blocked(self, x: Rows) -> BlockedTensor:
        """Rows [rows, width] as bfloat16 weights' products read them."""
        if isinstance(x, BlockedTensor):
            return x
        out = BlockedTensor.empty(len(x), x.shape[1], allocate=self._acquire)
        self._compute(_to_blocked(*x.shape, *_matrix(x), *_matrix(out)), (x,), (out,))
        return out

    def index_select(self, x: Rows, rows: Tensor) -> Rows:
        """The rows of x, of any dtype, whose numbers `rows` (int64, each below len(x)) has, copied."""
        count, width = len(rows), x.shape[1]
        out: Rows
        if isinstance(x, BlockedTensor):
            out = BlockedTensor.empty(count, width, x.dtype, self._acquire)
            runs, size = width * x.dtype.itemsize // COLUMN_BLOCK_BYTES, COLUMN_BLOCK_BYTES
            from_to = x.address, COLUMN_BLOCK_BYTES, x.block_stride, out.address, COLUMN_BLOCK_BYTES, out.block_stride
        else:
            out = torch.empty(count, width, dtype=x.dtype)
            runs, size = 1, width * x.itemsize
            from_to = _at(x), size, 0, _at(out), size, 0
        self._compute(_index_select(count, _at(rows), runs, size, *from_to), (x, rows), (out,))
        return out

    def quantize(self, x: Rows) -> Int8Rows:
        """Rows [rows, width] as 8-bit integers, each row over its own range, as 8-bit weights' products read them."""
        rows, width = x.shape
        codes = BlockedTensor.empty(rows, width, torch.uint8, self._acquire)
        steps, zeros = torch.empty(rows), torch.empty(rows)
        operation = _quantize(rows, width, *_matrix(x), codes.address, codes.block_stride, _at(steps), _at(zeros))
        self._compute(operation, (x,), (codes, steps, zeros))
        return Int8Rows(codes, steps, zeros)

    def pack_bf16(self, weight: Tensor) -> PackedWeight:
        """A bfloat16 weight [outputs, inputs] as `product` reads it."""
        outputs, inputs = weight.shape
        tiles = torch.empty_like(weight)
        self._at_once(self.library.rerankd_pack_bf16, outputs, inputs, _at(weight), _at(tiles))
        return PackedWeight(tiles)

    def pack_int8(self, weight: Tensor, scales: Tensor) -> PackedWeight:
        """An int8 weight [outputs, inputs] with float32 scales [outputs] as `product` reads it."""
        outputs, inputs = weight.shape
        tiles, sums = torch.empty_like(weight), torch.empty(outputs)
        self._at_once(self.library.rerankd_pack_int8, outputs, inputs, _at(weight), _at(tiles), _at(sums))
        return PackedWeight(tiles, scales, sums)

    def gemm(
        self,
        rows: BlockedTensor | Int8Rows,
        weight: PackedWeight,
        bias: Tensor | None,
        out: Rows,
        epilogue: str | None = None,
        residual: Rows | None = None,
    ) -> None:
        """x W^T + b of rows and a weight, both in bfloat16 or both in 8 bits, and what follows it, written to `out`.

        bias: float32 [outputs]
        epilogue: "gelu", "gelu_tanh", "gated" (silu of the first half of the outputs, times the second half),
            or "residual" `residual` [rows, outputs]; computed before the product is rounded
        """
        outputs, inputs = weight.packed.shape
        x, steps, zeros = rows if isinstance(rows, Int8Rows) else (rows, None, None)
        shape = (x.count, outputs // 2 if epilogue == "gated" else outputs)
        if (steps is None) != (weight.scales is None) or x.width != inputs:
            raise ValueError(
                f"Rows of {x.width} columns in {x.dtype} do not fit a weight of {inputs} columns in "
                f"{weight.packed.dtype}."
            )
        if out.shape != shape or (residual is not None and residual.shape != shape):
            raise ValueError(f"A product of shape {list(shape)} cannot be written to rows of {list(out.shape)}.")
        operation = _gemm(
            x.count,
            inputs * weight.packed.itemsize // COLUMN_BLOCK_BYTES,
            outputs,
            x.address,
            x.block_stride,
            _at(weight.packed),
            _at(bias),
            *(_NO_MATRIX if residual is None else _matrix(residual)),
            *_matrix(out),
            _EPILOGUES.index(epilogue),
            _at(weight.scales),
            _at(weight.sums),
            _at(steps),
            _at(zeros),
        )
        self._compute(operation, (x, steps, zeros, weight, bias, residual), (out,))

    @staticmethod
    def fit_attention(head_dim: int) -> bool:
        """Whether `attention` can take heads of this size."""
        return head_dim % _BLOCK_COLUMNS == 0

    def attention(self, q: Rows, k: Rows, v: Rows, head_dim: int, layout: AttentionLayout, scale: float) -> Rows:
        """An `Attention` (see layout.py) of q [rows, heads * head_dim], k and v [T, kv_heads * head_dim]."""
        rows, width = q.shape
        out = self.empty_rows(rows, width)
        runs, bounds = layout.derived(runs_of)
        heads = width // head_dim, k.shape[1] // head_dim, head_dim
        runs_at, bounds_at = runs.buffer_info()[0], bounds.buffer_info()[0]
        inputs = (*_matrix(q), *_matrix(k), *_matrix(v))
        operation = _attention(len(runs) - 1, runs_at, bounds_at, *heads, *inputs, layout.causal, scale, *_matrix(out))
        self._compute(operation, (q, k, v, runs, bounds), (out,))
        return out


_MATRIX = Struct("3q")
"""`matrix` of common.h."""
_LOOKUP = Struct("3q")
"""`chosen` of operations.h."""
_OPERATIONS = {
    "rms_norm": "6qd3q",
    "norm_rope": "7qd5q",
    "add_layer_norm": "8qd4q",
    "to_blocked": "8q",
    "index_select": "10q",
    "quantize": "9q",
    "gemm": "18q",
    "attention": "16qd3q",
}
"""The structs of operations.h, in the order of the operations' numbers."""
_rms_norm, _norm_rope, _add_layer_norm, _to_blocked, _index_select, _quantize, _gemm, _attention = (
    partial(Struct("q" + operands).pack, number) for number, operands in enumerate(_OPERATIONS.values())
)
"""Operations as operations.c reads them: their number, then the struct of operations.h."""
_ABI = 2
"""RERANKD_ABI of operations.h."""
_AGREED = {
    "abi": _ABI,
    "matrix": _MATRIX.size,
    "lookup": _LOOKUP.size,
    "block": 6 * 8,
    "epilogue": len(_EPILOGUES),
    **{name: Struct(operands).size for name, operands in _OPERATIONS.items()},
}
"""What operations.c and this file have to agree on, in operations.c's order: bytes of a struct, or a number."""
_NO_MEMORY, _UNKNOWN_OPERATION, _CUT_SHORT = 1, 2, 3
_PROBLEMS = {_UNKNOWN_OPERATION: "one of them is unknown", _CUT_SHORT: "it ends within one of them"}
_NO_MATRIX = (0, 0, 0)

_T, _I, _F, _P, _S = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, ctypes.c_char_p
_ARGUMENTS = {
    "run": (_T, _T, _I, _S),
    "embed_layer_norm": (_T, _I, _I, _S, _P, _P, _F, _P, _S),
    "pack_bf16": (_I, _I, _P, _P),
    "pack_int8": (_I, _I, _P, _P, _P),
}
"""Of each function that Python calls; threads come first."""


class _Agreed(ctypes.Structure):
    """`agreed` of operations.h."""

    _fields_ = (("name", ctypes.c_char_p), ("value", _I))


def _check_sources(library: ctypes.CDLL, path: Path) -> None:
    """KernelsError where C sources lie beside the library, and it was compiled from others."""
    beside = digest(path.parent)
    if beside is None:
        return
    compiled: bytes | None = None
    if hasattr(library, "rerankd_sources"):
        library.rerankd_sources.restype = ctypes.c_char_p
        compiled = library.rerankd_sources()
    if compiled != beside.encode():
        checkouts = (root for root in path.parents if (root / "setup.py").exists() and root / "src" in path.parents)
        root = next(checkouts, None)
        command = "pip install --force-reinstall rerankd" if root is None else f"pip install -e {root}"
        raise KernelsError(
            f"The compiled kernels {path} were built from other sources than those beside them. "
            f"Build them again: {command}"
        )


def _check_agreement(library: ctypes.CDLL) -> None:
    """KernelsError where the library's structs and numbers are not what this file packs."""
    found: list[tuple[str, int]] = []
    if hasattr(library, "rerankd_agreed"):
        library.rerankd_agreed.restype = ctypes.POINTER(_Agreed)
        library.rerankd_agreed.argtypes = (_I,)
        while entry := library.rerankd_agreed(len(found)):
            found.append((entry.contents.name.decode(), entry.contents.value))
    expected = list(_AGREED.items())
    if found != expected:
        differing = sorted({name for name, _ in {*found} ^ {*expected}})
        raise KernelsError(
            f"The compiled kernels {library._name} and the Python code that calls them are of different versions; they "
            f"differ in {', '.join(differing) or 'the order of operations'}. Install rerankd again."
        )


def _matrix(x: Rows) -> tuple[int, int, int]:
    """The members of a `matrix`: an address, values from row to row, and values from 32 columns to the next 32."""
    if isinstance(x, BlockedTensor):
        return x.address, _BLOCK_COLUMNS, x.block_stride // 2
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ValueError(f"The rows of a tensor of shape {list(x.shape)} are not contiguous.")
    return x.data_ptr(), x.stride(0), _BLOCK_COLUMNS


def _at(tensor: Tensor | None) -> int:
    """Where a contiguous tensor begins; 0 for none."""
    if tensor is None:
        return 0
    if not tensor.is_contiguous():
        raise ValueError(f"A tensor of shape {list(tensor.shape)} is not contiguous.")
    return tensor.data_ptr()

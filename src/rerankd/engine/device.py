"""Where a model runs and with which kernels. The only module that names device types."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.layers.attention import Attention, sdpa_attention
from rerankd.layers.linear import DenseLinear, Linear, bfloat16_linear, int8_linear
from rerankd.layers.native import Kernels
from rerankd.layers.runtime import Runtime

log = logging.getLogger("rerankd")

DEVICES = ("cpu", "cuda", "npu", "xpu", "mps")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
DTYPE_ALIASES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}

# Enough rows for a product to earn its weight's way into the cache; few enough for what lies between two to stay there.
CPU_CHUNK_VALUES = 1 << 21
# The project's own products keep to the cache by themselves: so many rows, for each thread, that calls are few and that
# a weight need not come from memory often; few enough for rows that wait to stay in the third-level cache.
TILED_CHUNK_VALUES = 3 << 21
# Enough to share a prefix among many documents; small enough that another request need not wait for long.
CPU_BATCH_TOKENS = 8192
ACCELERATOR_BATCH_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, a dtype and what follows from them. `batch_tokens` is the default token budget."""

    runtime: Runtime
    batch_tokens: int

    @property
    def device_name(self) -> str:
        return str(self.runtime.device)

    @property
    def dtype_name(self) -> str:
        return str(self.runtime.dtype).removeprefix("torch.")


def place(device: str = "auto", dtype: str = "auto", quantization: str | None = None) -> Placement:
    """Choose where and how to run.

    device: "auto" (the accelerator that torch finds, else the CPU), or a type of DEVICES, with an index or not
    dtype: "auto" (bfloat16 on an accelerator or a processor with AVX512-BF16 or AMX, else float32) or a name. float16
        on a CPU stands for "auto": processors multiply it many times slower, and it overflows where bfloat16 does not
    quantization: "int8" for linear maps in 8 bits, on a CPU with VNNI; None for `dtype`

    Raises ModelError for what the machine does not have.
    """
    chosen = _device(device)
    on_cpu = chosen.type == "cpu"
    chosen_dtype = _dtype(dtype, on_cpu)
    if on_cpu:
        keep_freed_memory()
    kernels = Kernels.load() if on_cpu and chosen_dtype == torch.bfloat16 else None
    runtime = Runtime(
        device=chosen,
        dtype=chosen_dtype,
        attention=_attention(chosen, chosen_dtype),
        kernels=kernels,
        linear=_linear(quantization, chosen, chosen_dtype, kernels),
        exact_linear=_linear(None, chosen, chosen_dtype, kernels),
        chunk_values=_chunk_values(kernels) if on_cpu else None,
    )
    return Placement(runtime, CPU_BATCH_TOKENS if on_cpu else ACCELERATOR_BATCH_TOKENS)


def _chunk_values(kernels: Kernels | None) -> int:
    if kernels is not None:
        return TILED_CHUNK_VALUES * torch.get_num_threads()
    return CPU_CHUNK_VALUES


def keep_freed_memory() -> None:
    """Let glibc keep large blocks for the next use instead of returning each to the kernel.

    A forward pass frees and asks for the same large tensors over and over; the page faults cost 20 % of it.
    """
    if platform.system() != "Linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 2**31 - 1)
    mallopt(m_trim_threshold, 2**31 - 1)


def settle() -> None:
    """Give back what loading a model took and running it does not need; call it on the thread that has loaded.

    Freed memory goes back to the kernel once, `keep_freed_memory` or not. And the OpenMP threads that wait for this
    thread's next parallel region end. The engine's own thread has a crew of its own; with two crews there are more
    threads than cores, and GNU's OpenMP then lets all of them sleep between regions: a wake-up for each operation.
    """
    if platform.system() != "Linux":
        return
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError, AttributeError):  # another OpenMP, or none
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD).omp_pause_resource_all(1)


def _device(name: str) -> torch.device:
    kind = name.partition(":")[0]
    if kind == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    if kind not in DEVICES:
        raise ModelError(f"The device {name!r} is unknown; choose auto, {', '.join(DEVICES)}.")
    if kind == "npu":
        _import_npu()
    if kind != "cpu" and not _available(kind):
        raise ModelError(f"The device {name!r} was asked for, but torch {torch.__version__} finds none here.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"The device {name!r} is not one that torch knows: {error}.") from None


def _available(kind: str) -> bool:
    backend = getattr(torch, kind, None) or getattr(torch.backends, kind, None)
    return backend is not None and bool(backend.is_available())


def _import_npu() -> None:
    try:
        __import__("torch_npu")
    except ImportError:
        raise ModelError("The device 'npu' needs the package torch_npu, which is not installed.") from None


def _dtype(name: str, on_cpu: bool) -> torch.dtype:
    name = DTYPE_ALIASES.get(name, name)
    if name == "auto":
        return torch.bfloat16 if not on_cpu or _cpu_multiplies_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ModelError(f"The dtype {name!r} is unknown; choose auto, {', '.join(DTYPES)}.")
    if name == "float16" and on_cpu:
        chosen = _dtype("auto", on_cpu)
        log.warning(
            "float16 is slow on a CPU: computing in %s in its place, as --dtype auto does.",
            str(chosen).removeprefix("torch."),
        )
        return chosen
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    # torch has no public name for these two questions; without them the answer is the safe one.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _linear(
    quantization: str | None, device: torch.device, dtype: torch.dtype, kernels: Kernels | None
) -> Callable[[Tensor, Tensor | None], Linear]:
    on_cpu = device.type == "cpu"
    if quantization is None:
        if on_cpu and dtype == torch.bfloat16 and _onednn_multiplies_bfloat16():
            return partial(bfloat16_linear, kernels=kernels)
        return DenseLinear
    if quantization != "int8":
        raise ModelError(f"The quantization {quantization!r} is unknown; choose int8, or none by leaving it out.")
    if not on_cpu:
        raise ModelError("int8 is for CPUs; leave the quantization out on an accelerator, or choose --device cpu.")
    if not getattr(torch.cpu, "_is_vnni_supported", bool)():
        # Without VNNI oneDNN adds pairs of products in 16 bits, where they saturate.
        raise ModelError("int8 needs a processor with VNNI, whose 8-bit products are exact; this one has none.")
    return partial(int8_linear, kernels=kernels)


def _onednn_multiplies_bfloat16() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    return bool(torch._C._has_mkldnn) and bool(supported())


def _attention(device: torch.device, dtype: torch.dtype) -> Attention:
    if device.type == "cuda" and dtype != torch.float32:
        from rerankd.layers.attention.varlen import varlen_attention

        return varlen_attention
    return sdpa_attention

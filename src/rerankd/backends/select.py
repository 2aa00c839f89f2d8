"""Where a model runs, in which dtype, and by which backend. The only module that names device types."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

import torch

from rerankd.backends.base import Backend
from rerankd.backends.cpu.native.units import allows
from rerankd.backends.ranks import Ranks, expect_parallel
from rerankd.backends.torch.backend import TorchBackend
from rerankd.core import ModelError
from rerankd.layers.shard import WHOLE, Shard
from rerankd.layers.spec import Activation, Affine, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Projection, Transformer
from rerankd.memory import keep_freed_memory

log = logging.getLogger("rerankd")

DEVICES = ("cpu", "cuda", "npu", "xpu", "mps")
BACKENDS = ("auto", "torch", "cpu", "cuda", "npu")
QUANTIZATIONS = {"int8": "cpu", "fp8": "cuda"}
"""The backend of each."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
DTYPE_ALIASES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}

# Enough to share a prefix among many documents; small enough that another request need not wait for long.
CPU_BATCH_TOKENS = 8192
ACCELERATOR_BATCH_TOKENS = 16384
CUDA_IN_FLIGHT = 2
"""Batches that a CUDA device has at a time: the next is launched while one is computed."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, a dtype, and the backends that run there.

    backends: in the order in which they are asked whether they support a specification
    batch_tokens: the default token budget of a batch
    in_flight: batches that the device has at a time
    may_fall_back: whether another backend than the first may run a model
    ranks: this process among those that compute the model together
    """

    backends: tuple[Backend, ...]
    batch_tokens: int
    in_flight: int = 1
    may_fall_back: bool = True
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def device(self) -> torch.device:
        """Where tensors lie."""
        return self.backends[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and of the input of GEMMs."""
        return self.backends[0].dtype

    @property
    def dtype_name(self) -> str:
        """The dtype without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    def backend_for(self, spec: TransformerSpec) -> tuple[Backend, list[str]]:
        """The first backend that supports a specification, and why those before it do not.

        Raises ModelError, with each reason, where none does.
        """
        reasons: list[str] = []
        for backend in self.backends:
            reason = backend.supports(spec)
            if reason is None:
                return backend, reasons
            reasons.append(f"the backend {backend.name} does not support {reason}")
            if not self.may_fall_back:
                break
        raise ModelError(f"The model cannot run as asked: {'; '.join(reasons)}.")

    def transformer(self, spec: TransformerSpec, weights: TransformerWeights) -> Transformer:
        """A transformer by `backend_for(spec)`."""
        backend, reasons = self.backend_for(spec)
        if reasons:
            log.info("The backend %s runs the model: %s", backend.name, "; ".join(reasons))
        return backend.transformer(spec, weights)

    def projection(self, weights: Affine, activation: Activation | None = None) -> Projection:
        """See `Executor.projection`."""
        return self.backends[0].projection(weights, activation)


def place(
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    backend: str = "auto",
    shard: Shard = WHOLE,
) -> Placement:
    """Choose where and how to run.

    device: "auto" (the accelerator that torch finds, else the CPU), or a type of DEVICES, with an index or not
    dtype: "auto" (bfloat16 on an accelerator or a processor with AVX512-BF16 or AMX, else float32) or a name. float16
        on a CPU stands for "auto": processors multiply it many times slower, and it overflows where bfloat16 does not
    quantization: None for linear layers in `dtype`; "int8" for 8-bit integers, on a CPU with VNNI; "fp8" for 8-bit
        floats, on a CUDA device of compute capability 8.9 (Ada, Hopper) or later, with Triton
    backend: "auto", or one of BACKENDS that alone may run the model
    shard: the part of each layer that this process has; on CUDA each part has a device of its own

    Raises ModelError for a choice that is unknown, or that the machine does not support.
    """
    if backend not in BACKENDS:
        raise ModelError(f"The backend {backend!r} is unknown; choose {', '.join(BACKENDS)}.")
    chosen, ranks = _device(device), Ranks(shard)
    if shard.size > 1:
        chosen = _own_device(chosen, shard, quantization, backend)
    on_cpu = chosen.type == "cpu"
    chosen_dtype = _dtype(dtype, on_cpu)
    if backend not in ("auto", "torch", chosen.type):
        raise ModelError(f"The backend {backend} does not run on the device {chosen}; choose auto or torch.")
    if on_cpu:
        keep_freed_memory()
    return Placement(
        backends=_backends(chosen, chosen_dtype, quantization, backend, ranks),
        batch_tokens=CPU_BATCH_TOKENS if on_cpu else ACCELERATOR_BATCH_TOKENS,
        in_flight=CUDA_IN_FLIGHT if chosen.type == "cuda" else 1,
        may_fall_back=backend == "auto" and quantization is None,
        ranks=ranks,
    )


def replica_devices(names: str, replicas: int | None) -> tuple[str, ...]:
    """The device of each replica of a model.

    names: a device as `place` takes it, or several with commas between them, which replicas have in turn
    replicas: how many; None for one for each name

    A device without an index stands for the first ones of its kind, as many as there are replicas. Raises ModelError
    for devices that the machine does not have.
    """
    device_names = [name.strip() for name in names.split(",")]
    count = len(device_names) if replicas is None else replicas
    if count < 1:
        raise ModelError(f"The data parallel size must be at least 1, not {count}.")
    if count % len(device_names):
        raise ModelError(
            f"{count} replicas cannot share out {len(device_names)} devices evenly; give --data-parallel-size a "
            f"multiple of {len(device_names)}, or leave it out."
        )
    if count == 1:
        return (names,)
    devices = [_device(name) for name in device_names]
    kinds = {device.type for device in devices}
    if len(kinds) > 1:
        raise ModelError(f"Replicas run on devices of one kind, not on {names}.")
    kind = kinds.pop()
    if kind != "cpu" and all(device.index is None for device in devices):
        available = torch.get_device_module(kind).device_count()
        if count > available:
            raise ModelError(
                f"{count} replicas need as many {kind} devices; this machine has {available}. To share one, give "
                f"--device {kind}:0."
            )
        return tuple(f"{kind}:{index}" for index in range(count))
    return tuple(str(devices[index % len(devices)]) for index in range(count))


def alone(device: str) -> tuple[str, dict[str, str]]:
    """The name of a device in a process that sees no other GPU, and the environment variables of that process."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return device, {}
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return kind, {"CUDA_VISIBLE_DEVICES": index if shown is None else shown.split(",")[int(index)].strip()}


def limit_memory(device: torch.device, share: float) -> None:
    """Have torch take no more than a share of a CUDA device's memory. Elsewhere the share has no effect, and a warning
    says so.

    Raises ModelError for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ModelError(f"The share of a GPU's memory must be more than 0 and at most 1, not {share}.")
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)
    else:
        log.warning("gpu_memory_utilization has no effect on the device %s.", device)


def _backends(
    device: torch.device, dtype: torch.dtype, quantization: str | None, backend: str, ranks: Ranks
) -> tuple[Backend, ...]:
    torch_backend = TorchBackend(device, dtype, ranks=ranks)
    if quantization is not None:
        _expect_quantization(quantization, device, backend)
    if backend == "torch":
        return (torch_backend,)
    if device.type == "cpu" and ranks.shard.size == 1:
        from rerankd.backends.cpu.backend import CpuBackend

        return CpuBackend(dtype, quantization), torch_backend
    if device.type == "cuda":
        from rerankd.backends.cuda.backend import cuda_backend

        return cuda_backend(device, dtype, quantization, ranks), torch_backend
    if device.type == "npu":
        from rerankd.backends.npu.attention import npu_backend

        return npu_backend(device, dtype, ranks), torch_backend
    return (torch_backend,)


def _expect_quantization(quantization: str, device: torch.device, backend: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ModelError(f"The quantization {quantization!r} is unknown; choose auto, {', '.join(QUANTIZATIONS)}.")
    required = QUANTIZATIONS[quantization]
    if device.type != required or backend == "torch":
        raise ModelError(
            f"{quantization} is for the backend {required}; leave the quantization out, or choose --device {required} "
            f"and --backend {required}."
        )
    if quantization == "fp8":
        from rerankd.backends.cuda.backend import expect_fp8

        expect_fp8(device)


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


def _own_device(device: torch.device, shard: Shard, quantization: str | None, backend: str) -> torch.device:
    """The device of one of several processes. ModelError where they cannot compute one model."""
    if device.index is not None:
        raise ModelError(
            f"Tensor parallelism of {shard.size} takes the first {shard.size} devices, so --device {device} cannot be "
            "kept; leave the number out, and choose devices by CUDA_VISIBLE_DEVICES."
        )
    if device.type == "cpu" and (backend == "cpu" or quantization is not None):
        raise ModelError(
            "The backend cpu does not run in several processes; leave --tensor-parallel-size out, or choose --backend "
            "torch without a quantization."
        )
    expect_parallel(device, shard.size)
    return device if device.type == "cpu" else torch.device(device.type, shard.rank)


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
            "float16 is slow on a CPU: the model computes in %s instead, as with --dtype auto.",
            str(chosen).removeprefix("torch."),
        )
        return chosen
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    if not allows(torch.bfloat16):
        return False
    # torch has no public name for these two questions; without them the answer is the safe one.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)

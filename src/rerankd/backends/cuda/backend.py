"""The backend of CUDA devices."""

from __future__ import annotations

import torch

from rerankd.backends.torch.attention import sdpa_attention
from rerankd.backends.torch.backend import TorchBackend


def cuda_backend(device: torch.device, dtype: torch.dtype) -> TorchBackend:
    """Plain tensors, with flash attention where the dtype has it. Its import takes seconds, so it is done here."""
    if dtype == torch.float32:
        return TorchBackend(device, dtype, sdpa_attention, "cuda")
    from rerankd.backends.cuda.attention import varlen_attention

    return TorchBackend(device, dtype, varlen_attention, "cuda")

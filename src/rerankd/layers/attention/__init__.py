"""Attention over packed segments: one signature, several backends.

Every backend is an `Attention`; `reference` is the plain float32 one that the tests hold the others against.
`varlen`, for CUDA, is imported where it is used: what it needs of torch takes seconds to import.
"""

from rerankd.layers.attention.layout import Attention, AttentionLayout, Block
from rerankd.layers.attention.reference import reference_attention
from rerankd.layers.attention.sdpa import sdpa_attention

__all__ = [
    "Attention",
    "AttentionLayout",
    "Block",
    "reference_attention",
    "sdpa_attention",
]

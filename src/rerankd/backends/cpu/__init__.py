"""The backend of CPUs: kernels in C where the processor has AVX512-BF16, torch's functions elsewhere.

A batch goes through a layer in row tiles, so that the rows between two GEMMs stay in the caches. This folder keeps the
means for that to itself: the blocked layout, row tiles, recorded execution and the buffer pool.
"""

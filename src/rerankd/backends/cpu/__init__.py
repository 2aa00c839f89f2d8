"""The backend of CPUs: kernels in C where the processor has what they need, torch's functions where not.

Rows go through a layer in row tiles, so that rows between two GEMMs stay in the caches. Everything that exists for that
is private to this folder: blocked rows, row tiles, recorded execution, the buffer pool.
"""

"""The backend of CPUs: kernels in C for the processors that they are compiled for, torch's functions elsewhere.

A batch goes through a layer in row tiles, so that the rows between two GEMMs stay in the caches. This folder keeps the
means for that to itself: the blocked layout, row tiles, recorded execution and the buffer pool.
"""

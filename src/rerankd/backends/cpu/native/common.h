/* Code that all kernels of a unit share: addresses in the blocked layout.
 *
 * A unit is an instruction set and a dtype of rows. The same sources are compiled for each (avx512.c, avx2.c, neon.c and so
 * on): a header of the instruction set (avx512.h, avx2.h, neon.h) has the type `vector` and its functions, and a header of the dtype
 * (bfloat16.h, float32.h) the type `value`.
 *
 * torch computes the same operations in several passes over temporaries; a kernel reads and writes each row once. Plain C behind
 * a C ABI: built without torch's headers, loaded by ctypes, and left out where the files do not compile. The threads are
 * torch's: both use the one OpenMP runtime that is loaded.
 *
 * Everywhere: strides count values, rows are contiguous in their last dimension. Widths are multiples of 16 (`Kernels.fit`
 * checks), head dimensions of the values in 64 bytes.
 */
#ifndef RERANKD_COMMON_H
#define RERANKD_COMMON_H

#include "operations.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define LOG2_E 1.44269504f

/* ---- tiles ------------------------------------------------------------------------------------------------------
 *
 * A tile is 16 rows of 64 bytes: 16 float32 values, 32 of bfloat16 or 64 of 8 bits. Between GEMMs a tensor has the blocked
 * layout: a column block holds 64 bytes of every row, and column blocks follow one another. So any 16 adjacent lines of a column
 * block are a tile; and a GEMM, which writes some columns of many rows, writes adjacent lines, which the processor prefetches by
 * itself. The last column block has 31 spare rows behind it, which GEMMs and attention may load and whose values they ignore.
 */

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE = TILE_ROWS * TILE_BYTES };

/* Values of a column block; values of a row that a line of a panel takes; vectors of 16 lanes or of a column block. */
enum { VALUES = TILE_BYTES / sizeof(value), PER_LINE = 4 / sizeof(value) };
enum { PARTS = 16 / LANES, BLOCK_PARTS = VALUES / LANES };

/* The address of a value; the values that follow it, up to the end of the column block, are adjacent. */
INLINE value *address_of(const matrix *m, int64_t row, int64_t column)
{
    return (value *)m->at + row * m->row + (column >> VALUE_SHIFT) * m->columns + (column & (VALUES - 1));
}

/* The same in a matrix of float32 values. */
INLINE float *float_at(const matrix *m, int64_t row, int64_t column)
{
    return (float *)m->at + row * m->row + (column >> 4) * m->columns + (column & 15);
}

/* The part of a matrix that begins at a row and a column, which begins a column block. */
INLINE matrix shifted(const matrix *m, int64_t row, int64_t column)
{
    return (matrix){ address_of(m, row, column), m->row, m->columns };
}

INLINE int64_t up_to(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Panels are packed from multiples of as many rows as a column block has values, and tiles sum over as many values. */
INLINE int64_t padded(int64_t n)
{
    return up_to(n, VALUES);
}

/* Prefetch a line into the first-level cache, or into the second. */
INLINE void prefetch_near(const void *at) { __builtin_prefetch(at, 0, 3); }
INLINE void prefetch_far(const void *at) { __builtin_prefetch(at, 0, 2); }

/* A function of a unit that has its name. */
#define JOINED(a, b) a##_##b
#define NAMED_FOR(name, own) JOINED(name, own)

#endif

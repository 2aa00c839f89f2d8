/* Code that all kernels share: bfloat16, 2^x, the blocked layout, and the distribution of work.
 *
 * torch computes the same operations in several passes over float32 temporaries; a kernel reads and writes each row once.
 * Plain C behind a C ABI for x86-64 with AVX512-BF16: built without torch's headers, loaded by ctypes, and left out where the
 * files do not compile. The threads are torch's: both use the one OpenMP runtime that is loaded.
 *
 * Everywhere: bf16 is a bfloat16 as its 16 bits, strides count elements, rows are contiguous in their last dimension.
 * Widths are multiples of 16 (`Kernels.fit` checks), head dimensions multiples of 32.
 */
#ifndef RERANKD_COMMON_H
#define RERANKD_COMMON_H

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

/* One target for all functions, so that any can be inlined into any. Code runs on tiles only where HAS_TILES is set. */
#define TARGET                                                                                                        \
    __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma,"  \
                          "prefer-vector-width=512")))
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE __m512 load_bf16(const bf16 *from)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

INLINE void store_bf16(bf16 *to, __m512 x)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x with a relative error of 3e-6, a 1000th of bfloat16's, for -100 <= x <= 127; about 0 below. (The lower bound keeps
 * results normal: subnormal float32 takes the processor a hundred times as long.) */
INLINE __m512 exp2_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x); /* this order of operands keeps NaN */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.56051e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591704e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4024981e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9312197e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9999919e-1f));
    return _mm512_scalef_ps(p, n);
}

#define LOG2_E 1.44269504f

/* ---- tiles ------------------------------------------------------------------------------------------------------
 *
 * A tile is 16 rows of 64 bytes: 32 bfloat16 values or 64 8-bit ones. Between GEMMs a tensor has the blocked layout: a column
 * block holds 64 bytes of every row, and column blocks follow one another. So any 16 adjacent lines of a column block are a
 * tile; and a GEMM, which writes some columns of many rows, writes adjacent lines, which the processor prefetches by itself.
 * The last column block has 31 spare rows behind it, which GEMMs and attention may load and whose values they ignore.
 */

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE = TILE_ROWS * TILE_BYTES };

/* A bfloat16 matrix in the blocked layout or row after row. row: values from a row to the next; columns: values from 32 columns
 * to the next 32. */
typedef struct { bf16 *at; int64_t row, columns; } matrix;

/* The address of a value; the values that follow it, up to the next multiple of 32 columns, are adjacent. */
INLINE bf16 *address_of(const matrix *m, int64_t row, int64_t column)
{
    return m->at + row * m->row + (column >> 5) * m->columns + (column & 31);
}

/* The part of a matrix that begins at a row and a column, a multiple of 32. */
INLINE matrix shifted(const matrix *m, int64_t row, int64_t column)
{
    return (matrix){ address_of(m, row, column), m->row, m->columns };
}

INLINE int64_t up_to(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Panels are packed from multiples of 32 rows, and tiles sum over multiples of 32 values. */
INLINE int64_t padded(int64_t n)
{
    return up_to(n, 32);
}

/* ---- work ----------------------------------------------------------------------------------------------------------
 *
 * A thread gets pieces of about the same rows in every operation, since its second-level cache may still hold these rows.
 */

/* The pieces of one thread; `next` is the first that no thread has taken. Aligned to a cache line of its own. */
typedef struct { int64_t next, end; } __attribute__((aligned(64))) range;

/* The next piece of the thread's own, else of another thread of the team, since a thread that shares its core with other work
 * is slower; -1 where no piece is left. team: the number of threads */
INLINE int64_t take_piece(range *ranges, int64_t thread, int64_t team)
{
    for (int64_t k = 0; k < team; k++) {
        range *from = ranges + (thread + k) % team;
        const int64_t piece = __atomic_fetch_add(&from->next, 1, __ATOMIC_RELAXED);
        if (piece < from->end)
            return piece;
    }
    return -1;
}

#endif

/* What the kernels share: bfloat16, 2^x, rows in strips, and shares of work.
 *
 * torch computes what is here as several passes over float32 temporaries; here a row is read once and written once.
 * Plain C behind a C ABI for x86-64 with AVX512-BF16: built without torch's headers, loaded by ctypes, and left out where it
 * does not compile. Threads are torch's own: both use the one OpenMP runtime that is loaded.
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

/* One target for all, so that all can be inlined into each other; tiles are used only where HAS_TILES says so. */
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

/* 2^x to 3e-6 of itself, less than a 1000th of what bfloat16 keeps, for -100 <= x <= 127; next to 0 below. (Not nearer:
 * what is too small for a normal float32 takes the processor a hundred times as long.) */
INLINE __m512 exp2_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x); /* in this order not-a-number stays what it is */
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
 * A tile is 16 rows of 64 bytes: 32 bfloat16 values or 64 8-bit ones. Rows between products lie in strips, 64 bytes of every
 * row, then the next 64 of every row: any 16 lines on end are a tile, and what a product writes, some columns of many rows,
 * it writes to lines on end, which the processor asks for by itself. Behind the last strip is room for 31 rows more, that
 * products and attention may read and never look at.
 */

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE = TILE_ROWS * TILE_BYTES };

/* Rows of bfloat16, in strips or not: how many values lie between one row and the next, and between 32 columns and the next
 * 32. */
typedef struct { bf16 *at; int64_t row, columns; } matrix;

/* Where a run of 16 values begins. */
INLINE bf16 *run_of(const matrix *m, int64_t row, int64_t column)
{
    return m->at + row * m->row + (column >> 5) * m->columns + (column & 31);
}

/* What lies from a row and a column, a multiple of 32, on. */
INLINE matrix shifted(const matrix *m, int64_t row, int64_t column)
{
    return (matrix){ run_of(m, row, column), m->row, m->columns };
}

INLINE int64_t up_to(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Rows of which panels are made, and what tiles sum over, come in multiples of 32. */
INLINE int64_t padded(int64_t n)
{
    return up_to(n, 32);
}

/* ---- work ----------------------------------------------------------------------------------------------------------
 *
 * Each thread is given pieces of about the rows that are its own in all operations, since its second-level cache may have them.
 */

/* Pieces that a thread was given, of which `next` is the first that none has taken; on a line of its own. */
typedef struct { int64_t next, end; } __attribute__((aligned(64))) range;

/* A piece of the thread's own, then of what is left of the other threads', since one that shares its core with others is
 * slower; -1 where nothing is. */
INLINE int64_t take_piece(range *ranges, int64_t thread, int64_t crew)
{
    for (int64_t k = 0; k < crew; k++) {
        range *from = ranges + (thread + k) % crew;
        const int64_t piece = __atomic_fetch_add(&from->next, 1, __ATOMIC_RELAXED);
        if (piece < from->end)
            return piece;
    }
    return -1;
}

#endif

/* The GEMM microkernel of the vector unit.
 *
 * One instruction multiplies a line of a panel (16 outputs) by 4 bytes of a row that are broadcast over a register. The
 * registers hold the sums of 12 rows by 32 outputs. Two lines and 12 broadcasts serve 24 instructions, so that the caches keep
 * up, and the sums stay in registers until they are complete.
 */
#if defined(__x86_64__) && defined(__linux__)
#include "vectors.h"

/* Add the dot products of 4 bytes of a row, broadcast, and of a line of a panel, to a register of the row's 16 sums. */
#define ADD_DOT_PRODUCTS(sums, broadcast, line)                                                                       \
    (quantized ? (__m512)_mm512_dpbusd_epi32((__m512i)(sums), broadcast, line)                                        \
               : _mm512_dpbf16_ps(sums, (__m512bh)(broadcast), (__m512bh)(line)))

INLINE void multiply(microkernel *f, int count, int both, int quantized)
{
    const uint8_t *left = f->left, *right = f->right;
    __m512 s[2 * VECTOR_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        s[2 * r] = f->accumulate ? _mm512_loadu_ps(f->sums + r * f->stride) : _mm512_setzero_ps();
        if (both)
            s[2 * r + 1] = f->accumulate ? _mm512_loadu_ps(f->sums + r * f->stride + 16) : _mm512_setzero_ps();
    }
    const uint8_t *block = f->rows;
    for (int64_t k = 0; k < f->depth; k += 16, block += f->block_stride) {
        for (int64_t n = 0; n < f->lines && f->fetched < f->end; n++, f->fetched += 64) {
            _mm_prefetch(f->ahead[0] + f->fetched, _MM_HINT_T1);
            _mm_prefetch(f->ahead[1] + f->fetched, _MM_HINT_T1);
        }
        const uint8_t *x = block, *stop = block + 4 * (f->depth - k < 16 ? f->depth - k : 16);
        for (; x < stop; x += 4, left += 64) {
            const __m512i a = _mm512_loadu_si512(left), b = both ? _mm512_loadu_si512(right) : a;
            if (both)
                right += 64;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                int32_t bytes;
                memcpy(&bytes, x + r * TILE_BYTES, sizeof bytes);
                const __m512i broadcast = _mm512_set1_epi32(bytes);
                s[2 * r] = ADD_DOT_PRODUCTS(s[2 * r], broadcast, a);
                if (both)
                    s[2 * r + 1] = ADD_DOT_PRODUCTS(s[2 * r + 1], broadcast, b);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        _mm512_storeu_ps(f->sums + r * f->stride, s[2 * r]);
        if (both)
            _mm512_storeu_ps(f->sums + r * f->stride + 16, s[2 * r + 1]);
    }
}

/* The same where the number of rows, up to VECTOR_ROWS, is known only at run time. */
INLINE void multiply_some(microkernel *f, int64_t count, int both, int quantized)
{
    switch (count) {
    case 1: multiply(f, 1, both, quantized); break;
    case 2: multiply(f, 2, both, quantized); break;
    case 3: multiply(f, 3, both, quantized); break;
    case 4: multiply(f, 4, both, quantized); break;
    case 5: multiply(f, 5, both, quantized); break;
    case 6: multiply(f, 6, both, quantized); break;
    case 7: multiply(f, 7, both, quantized); break;
    case 8: multiply(f, 8, both, quantized); break;
    case 9: multiply(f, 9, both, quantized); break;
    case 10: multiply(f, 10, both, quantized); break;
    case 11: multiply(f, 11, both, quantized); break;
    case 12: multiply(f, 12, both, quantized); break;
    }
}

TARGET void rerankd_multiply_bf16(microkernel *f, int64_t count)
{
    if (f->right)
        multiply_some(f, count, 1, 0);
    else
        multiply_some(f, count, 0, 0);
}

TARGET void rerankd_multiply_int8(microkernel *f, int64_t count)
{
    multiply_some(f, count, 1, 1);
}
#endif

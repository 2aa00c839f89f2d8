/* The packed right operand of a GEMM: panels of 16 outputs. A line of a panel holds 4 bytes of each of the 16. */
#ifndef RERANKD_PANELS_H
#define RERANKD_PANELS_H

#include "common.h"

INLINE void transpose_16x16(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Pack y [n, width], which begins at a row and a column of a matrix, as the right operand of x y^T. The GEMM sums over width;
 * rows of y, padded to a multiple of 32, are its outputs. */
TARGET static void pack_panels(const matrix *y, int64_t first, int64_t column, int64_t n, int64_t width, bf16 *out)
{
    for (int64_t i = 0; i < padded(n); i += 16)
        for (int64_t j = 0; j < width; j += 32) {
            __m512i rows[16];
            for (int r = 0; r < 16; r++)
                rows[r] = i + r < n ? _mm512_loadu_si512(address_of(y, first + i + r, column + j)) : _mm512_setzero_si512();
            transpose_16x16(rows);
            for (int r = 0; r < 16; r++)
                _mm512_storeu_si512(out + i * width + (j / 2 + r) * 32, rows[r]);
        }
}

#endif

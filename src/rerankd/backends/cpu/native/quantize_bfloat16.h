/* Rows in bfloat16 as 8-bit integers. Maxima are found in 16 bits, without a conversion. */
#ifndef RERANKD_QUANTIZE_H
#define RERANKD_QUANTIZE_H

#include "rows.h"

/* bfloat16 values as 16-bit integers of the same order. */
INLINE __m512i ordered(__m512i x)
{
    return _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff)));
}

/* The inverse of `ordered`. */
INLINE float value_of(int ordered)
{
    const uint32_t bits = (uint32_t)(ordered ^ (ordered >> 15 & 0x7fff)) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float smallest(__m512i x)
{
    const __m256i half = _mm256_min_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return value_of(_mm512_reduce_min_epi32(_mm512_cvtepi16_epi32(half)));
}

INLINE float largest(__m512i x)
{
    const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return value_of(_mm512_reduce_max_epi32(_mm512_cvtepi16_epi32(half)));
}

/* 32 bfloat16 values times a factor, rounded to integers that 16 bits hold. */
INLINE __m512i rounded(__m512i x, vector factor)
{
    __m512i even = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), factor));
    vector high = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
    __m512i odd = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}

INLINE void quantize_rows(const quantize *o, int64_t first, int64_t end)
{
    const int64_t width = o->width;
    const matrix *x = &o->x;
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    for (int64_t i = first; i < end; i += ABREAST) {
        const int64_t count = end - i < ABREAST ? end - i : ABREAST;
        const value *row[ABREAST];
        __m512i low[ABREAST], high[ABREAST];
        for (int r = 0; r < ABREAST; r++) {
            row[r] = address_of(x, r < count ? i + r : i, 0);
            low[r] = high[r] = _mm512_setzero_si512();
        }
        for (int64_t j = 0; j < width / 32; j++)
            for (int r = 0; r < ABREAST; r++) {
                const value *at = row[r] + j * x->columns;
                prefetch_near(at + ABREAST * x->row);
                __m512i v = ordered(_mm512_loadu_si512(at));
                low[r] = _mm512_min_epi16(low[r], v);
                high[r] = _mm512_max_epi16(high[r], v);
            }
        for (int64_t r = 0; r < count; r++) {
            const float least = smallest(low[r]), range = (largest(high[r]) - least) / 255.0f;
            const float step = range < FLT_MIN * 256 ? FLT_MIN * 256 : range; /* the comparison keeps NaN */
            const float zero = rintf(-least / step);
            o->steps[i + r] = step;
            o->zeros[i + r] = zero;
            const vector factor = _mm512_set1_ps(1.0f / step);
            const __m512i shift = _mm512_set1_epi16((short)lrintf(zero));
            uint8_t *to = (uint8_t *)o->codes + (i + r) * TILE_BYTES;
            for (int64_t j = 0; j < width / 64; j++) {
                const value *from = row[r] + 2 * j * x->columns;
                __m512i a = _mm512_add_epi16(rounded(_mm512_loadu_si512(from), factor), shift);
                __m512i b = _mm512_add_epi16(rounded(_mm512_loadu_si512(from + x->columns), factor), shift);
                _mm512_storeu_si512(to + j * o->block_stride, _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a, b)));
            }
        }
    }
}
ROW_OPERATION(quantize, rows)

#endif

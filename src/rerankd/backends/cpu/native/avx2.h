/* Vectors of AVX2 with FMA. */
#ifndef RERANKD_VECTOR_H
#define RERANKD_VECTOR_H

#include <immintrin.h>
#include <stdint.h>

/* One target for all functions, so that any can be inlined into any. */
#define TARGET __attribute__((target("avx2,fma" FEATURES)))
#define INLINE TARGET static inline __attribute__((always_inline))

typedef __m256 vector;
typedef __m256i integers;

/* 32-bit lanes of a vector; rows and panels at a time in the microkernel, whose sums take 12 of 16 registers; or 8 where bytes
 * need more registers beside the sums. */
#define MICRO_CASES 6
enum { LANES = 8, MICRO_ROWS = MICRO_CASES, MICRO_PANELS = 1, ROWS_OF_BYTES = 4 };

INLINE vector all(float x) { return _mm256_set1_ps(x); }
INLINE vector load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store(float *to, vector x) { _mm256_storeu_ps(to, x); }
INLINE integers load_integers(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE void store_integers(void *to, integers x) { _mm256_storeu_si256((__m256i *)to, x); }
INLINE integers all_integers(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vector bits_of(integers x) { return _mm256_castsi256_ps(x); }
INLINE integers as_bits(vector x) { return _mm256_castps_si256(x); }
INLINE vector add(vector a, vector b) { return _mm256_add_ps(a, b); }
INLINE vector subtract(vector a, vector b) { return _mm256_sub_ps(a, b); }
INLINE vector multiply(vector a, vector b) { return _mm256_mul_ps(a, b); }
INLINE vector multiply_add(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vector multiply_subtract(vector a, vector b, vector c) { return _mm256_fmsub_ps(a, b, c); }
INLINE vector subtract_product(vector a, vector b, vector c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a b */
/* a b + c, for a lane of a, whose lanes are all the same: a load broadcasts as fast. */
INLINE vector multiply_add_lane(vector a, int lane, vector b, vector c)
{
    (void)lane;
    return multiply_add(a, b, c);
}
/* The second operand where one is NaN. */
INLINE vector larger(vector a, vector b) { return _mm256_max_ps(a, b); }
INLINE vector smaller(vector a, vector b) { return _mm256_min_ps(a, b); }
INLINE vector absolute(vector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

INLINE float sum_of(vector x)
{
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

INLINE float largest_of(vector x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

INLINE float smallest_of(vector x)
{
    return -largest_of(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)));
}

INLINE vector nearest(vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* x 2^n for an integer n, where the result and x are normal. */
INLINE vector scaled(vector x, vector n)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

INLINE vector floats_of(integers x) { return _mm256_cvtepi32_ps(x); }
INLINE integers integers_of(vector x) { return _mm256_cvtps_epi32(x); }
INLINE integers add_integers(integers a, integers b) { return _mm256_add_epi32(a, b); }
/* 1 / x with 12 bits. */
INLINE vector rough_reciprocal(vector x) { return _mm256_rcp_ps(x); }

/* x in the lanes from j on that lie below `end`, and y in the others. */
INLINE vector lanes_before(int64_t j, int64_t end, vector x, vector y)
{
    const int count = end - j >= 8 ? 8 : end <= j ? 0 : (int)(end - j);
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(lanes));
}

/* The lanes of four vectors as bytes, clamped to 0 and 255. */
INLINE void store_bytes(uint8_t *to, const integers x[4])
{
    const __m256i y = _mm256_packus_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    store_integers(to, _mm256_permutevar8x32_epi32(y, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

/* The lanes of two vectors in 16 bits. */
INLINE void store_halves(int16_t *to, const integers x[2])
{
    store_integers(to, _mm256_permute4x64_epi64(_mm256_packs_epi32(x[0], x[1]), 0xd8));
}

/* The sums of two products of unsigned bytes and signed ones, which have to fit in 16 bits. */
INLINE integers pairs_of_bytes(integers a, integers b) { return _mm256_maddubs_epi16(a, b); }
/* Sums in 16 bits; the sums of the halves of each lane, in 32 bits. */
INLINE integers add_halves(integers a, integers b) { return _mm256_add_epi16(a, b); }
INLINE integers sums_of_halves(integers a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

/* Transpose 8 lines of 8 values of 4 bytes, `offset` bytes into lines; output lines are 64 bytes apart. */
INLINE void transpose_8x8(const void *const lines[8], int offset, char *to)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)((const char *)lines[i] + offset));
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float *)(to + 64 * i), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps((float *)(to + 64 * (i + 4)), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* Transpose 16 lines of 16 values of 4 bytes; line r begins at lines[r]. */
INLINE void transpose_lines(const void *const lines[16], void *to)
{
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8)
            transpose_8x8(lines + i, 4 * j, (char *)to + 64 * j + 4 * i);
}

#endif

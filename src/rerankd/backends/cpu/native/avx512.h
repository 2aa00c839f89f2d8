/* Vectors of AVX-512. */
#ifndef RERANKD_VECTOR_H
#define RERANKD_VECTOR_H

#include <immintrin.h>
#include <stdint.h>

#ifdef __clang__
#define WIDE ""
#else
#define WIDE ",prefer-vector-width=512"
#endif
/* One target for all functions, so that any can be inlined into any. */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma" FEATURES WIDE)))
#define INLINE TARGET static inline __attribute__((always_inline))

typedef __m512 vector;
typedef __m512i integers;

/* 32-bit lanes of a vector; rows and panels at a time in the microkernel, whose sums take 24 of 32 registers. */
#define MICRO_CASES 12
enum { LANES = 16, MICRO_ROWS = MICRO_CASES, MICRO_PANELS = 2, ROWS_OF_BYTES = MICRO_CASES };

INLINE vector all(float x) { return _mm512_set1_ps(x); }
INLINE vector load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vector x) { _mm512_storeu_ps(to, x); }
INLINE integers load_integers(const void *from) { return _mm512_loadu_si512(from); }
INLINE void store_integers(void *to, integers x) { _mm512_storeu_si512(to, x); }
INLINE integers all_integers(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vector bits_of(integers x) { return _mm512_castsi512_ps(x); }
INLINE integers as_bits(vector x) { return _mm512_castps_si512(x); }
INLINE vector add(vector a, vector b) { return _mm512_add_ps(a, b); }
INLINE vector subtract(vector a, vector b) { return _mm512_sub_ps(a, b); }
INLINE vector multiply(vector a, vector b) { return _mm512_mul_ps(a, b); }
INLINE vector multiply_add(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vector multiply_subtract(vector a, vector b, vector c) { return _mm512_fmsub_ps(a, b, c); }
INLINE vector subtract_product(vector a, vector b, vector c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
/* a b + c, for a lane of a, whose lanes are all the same: a load broadcasts as fast. */
INLINE vector multiply_add_lane(vector a, int lane, vector b, vector c)
{
    (void)lane;
    return multiply_add(a, b, c);
}
/* The second operand where one is NaN. */
INLINE vector larger(vector a, vector b) { return _mm512_max_ps(a, b); }
INLINE vector smaller(vector a, vector b) { return _mm512_min_ps(a, b); }
INLINE vector absolute(vector x) { return _mm512_abs_ps(x); }
INLINE float sum_of(vector x) { return _mm512_reduce_add_ps(x); }
INLINE float largest_of(vector x) { return _mm512_reduce_max_ps(x); }
INLINE float smallest_of(vector x) { return _mm512_reduce_min_ps(x); }
INLINE vector nearest(vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* x 2^n for an integer n. */
INLINE vector scaled(vector x, vector n) { return _mm512_scalef_ps(x, n); }
INLINE vector floats_of(integers x) { return _mm512_cvtepi32_ps(x); }
INLINE integers integers_of(vector x) { return _mm512_cvtps_epi32(x); }
INLINE integers add_integers(integers a, integers b) { return _mm512_add_epi32(a, b); }
/* 1 / x with 14 bits. */
INLINE vector rough_reciprocal(vector x) { return _mm512_rcp14_ps(x); }

/* x in the lanes from j on that lie below `end`, and y in the others. */
INLINE vector lanes_before(int64_t j, int64_t end, vector x, vector y)
{
    const __mmask16 lanes = end - j >= 16 ? 0xffff : end <= j ? 0 : (__mmask16)((1u << (end - j)) - 1);
    return _mm512_mask_mov_ps(y, lanes, x);
}

/* The lanes of four vectors as bytes, clamped to 0 and 255. */
INLINE void store_bytes(uint8_t *to, const integers x[4])
{
    const __m512i y = _mm512_packus_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store_integers(to, _mm512_permutexvar_epi32(order, y));
}

/* The lanes of two vectors in 16 bits. */
INLINE void store_halves(int16_t *to, const integers x[2])
{
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    store_integers(to, _mm512_permutexvar_epi64(order, _mm512_packs_epi32(x[0], x[1])));
}

/* The sums of two products of unsigned bytes and signed ones, which have to fit in 16 bits. */
INLINE integers pairs_of_bytes(integers a, integers b) { return _mm512_maddubs_epi16(a, b); }
/* Sums in 16 bits; the sums of the halves of each lane, in 32 bits. */
INLINE integers add_halves(integers a, integers b) { return _mm512_add_epi16(a, b); }
INLINE integers sums_of_halves(integers a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }

/* Transpose 16 lines of 16 values of 4 bytes; line r begins at lines[r]. */
INLINE void transpose_lines(const void *const lines[16], void *to)
{
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_si512(lines[i]);
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
    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512((char *)to + 64 * i, r[i]);
}

#endif

/* Vectors of NEON (ASIMD), which every 64-bit ARM processor has. */
#ifndef RERANKD_VECTOR_H
#define RERANKD_VECTOR_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

/* One target for all functions, so that any can be inlined into any: ARCHITECTURE in GCC's words, FEATURES in Clang's. */
#ifdef __clang__
#define TARGET __attribute__((target(FEATURES)))
#else
#define TARGET __attribute__((target(ARCHITECTURE)))
#endif
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float32x4_t vector;
typedef int32x4_t integers;

/* 32-bit lanes of a vector; rows and panels at a time in the microkernel, whose sums take 16 of 32 registers: the compiler loads
 * lines ahead of their use into the others. */
#define MICRO_CASES 4
enum { LANES = 4, MICRO_ROWS = MICRO_CASES, MICRO_PANELS = 1 };

INLINE vector all(float x) { return vdupq_n_f32(x); }
INLINE vector load(const float *from) { return vld1q_f32(from); }
INLINE void store(float *to, vector x) { vst1q_f32(to, x); }
INLINE integers load_integers(const void *from) { return vreinterpretq_s32_u8(vld1q_u8(from)); }
INLINE integers all_integers(int32_t x) { return vdupq_n_s32(x); }
INLINE vector bits_of(integers x) { return vreinterpretq_f32_s32(x); }
INLINE integers as_bits(vector x) { return vreinterpretq_s32_f32(x); }
INLINE vector add(vector a, vector b) { return vaddq_f32(a, b); }
INLINE vector subtract(vector a, vector b) { return vsubq_f32(a, b); }
INLINE vector multiply(vector a, vector b) { return vmulq_f32(a, b); }
INLINE vector multiply_add(vector a, vector b, vector c) { return vfmaq_f32(c, a, b); }
INLINE vector multiply_subtract(vector a, vector b, vector c) { return vfmaq_f32(vnegq_f32(c), a, b); }
INLINE vector subtract_product(vector a, vector b, vector c) { return vfmsq_f32(c, a, b); } /* c - a b */
/* The second operand where one is NaN. */
INLINE vector larger(vector a, vector b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vector smaller(vector a, vector b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE vector absolute(vector x) { return vabsq_f32(x); }
INLINE float sum_of(vector x) { return vaddvq_f32(x); }
INLINE float largest_of(vector x) { return vmaxvq_f32(x); }
INLINE float smallest_of(vector x) { return vminvq_f32(x); }
INLINE vector nearest(vector x) { return vrndnq_f32(x); }

/* x 2^n for an integer n, where the result and x are normal. */
INLINE vector scaled(vector x, vector n)
{
    return bits_of(vaddq_s32(as_bits(x), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}

INLINE vector floats_of(integers x) { return vcvtq_f32_s32(x); }
INLINE integers integers_of(vector x) { return vcvtnq_s32_f32(x); }
INLINE integers add_integers(integers a, integers b) { return vaddq_s32(a, b); }

/* 1 / x with 16 bits: the instruction's 8 and a step of Newton's method. */
INLINE vector rough_reciprocal(vector x)
{
    const vector y = vrecpeq_f32(x);
    return vmulq_f32(y, vrecpsq_f32(x, y));
}

/* x in the lanes from j on that lie below `end`, and y in the others. */
INLINE vector lanes_before(int64_t j, int64_t end, vector x, vector y)
{
    static const int32_t NUMBERS[LANES] = { 0, 1, 2, 3 };
    const int32_t count = end - j >= LANES ? LANES : end <= j ? 0 : (int32_t)(end - j);
    return vbslq_f32(vcltq_s32(vld1q_s32(NUMBERS), vdupq_n_s32(count)), x, y);
}

/* The lanes of four vectors as signed bytes, after clamping. */
INLINE void store_signed_bytes(int8_t *to, const integers x[4])
{
    const int16x8_t low = vcombine_s16(vqmovn_s32(x[0]), vqmovn_s32(x[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x[2]), vqmovn_s32(x[3]));
    vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

/* A call with a lane's number, which instructions hold as a constant. */
#define BY_LANE(function, lane, ...)                                                                                  \
    switch (lane) {                                                                                                   \
    case 0:                                                                                                           \
        return function(__VA_ARGS__, 0);                                                                              \
    case 1:                                                                                                           \
        return function(__VA_ARGS__, 1);                                                                              \
    case 2:                                                                                                           \
        return function(__VA_ARGS__, 2);                                                                              \
    default:                                                                                                          \
        return function(__VA_ARGS__, 3);                                                                              \
    }

/* a b + c, for a lane of a. */
INLINE vector multiply_add_lane(vector a, int lane, vector b, vector c)
{
    BY_LANE(vfmaq_laneq_f32, lane, c, b, a)
}

/* Transpose 16 lines of 16 values of 4 bytes; line r begins at lines[r]. */
INLINE void transpose_lines(const void *const lines[16], void *to)
{
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 16; j += 4) {
            integers r[4];
            int64x2_t pairs[4];
            for (int k = 0; k < 4; k++)
                r[k] = load_integers((const char *)lines[i + k] + 4 * j);
            for (int k = 0; k < 4; k += 2) {
                pairs[k] = vreinterpretq_s64_s32(vtrn1q_s32(r[k], r[k + 1]));
                pairs[k + 1] = vreinterpretq_s64_s32(vtrn2q_s32(r[k], r[k + 1]));
            }
            uint8_t *const first = (uint8_t *)to + 64 * j + 4 * i;
            for (int k = 0; k < 2; k++) {
                vst1q_u8(first + 64 * k, vreinterpretq_u8_s64(vzip1q_s64(pairs[k], pairs[k + 2])));
                vst1q_u8(first + 64 * (k + 2), vreinterpretq_u8_s64(vzip2q_s64(pairs[k], pairs[k + 2])));
            }
        }
}

#endif

/* Quantised values as signed bytes, 128 less than elsewhere, since NEON multiplies bytes of one sign. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef int8_t code;
typedef int8_t signed_code;
enum { CODES_BELOW = 128, ADJACENT = 4, LARGEST_WEIGHT = 127, LARGEST_SUM = 0, CODE_ROWS = MICRO_ROWS };
#include "no_halves.h"

INLINE void store_codes(code *to, const integers x[4])
{
    store_signed_bytes(to, x);
}

#if HAS_DOT_PRODUCTS
INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    BY_LANE(vdotq_laneq_s32, lane, sums, vreinterpretq_s8_s32(line), vreinterpretq_s8_s32(row))
}
#else
/* The sum of two products, at most 2 x 128 x 127, fits in 16 bits: weights are never -128. */
INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    const int8x16_t weights = vreinterpretq_s8_s32(line);
    int8x8_t codes;
    switch (lane) {
    case 0:
        codes = vreinterpret_s8_s32(vdup_laneq_s32(row, 0));
        break;
    case 1:
        codes = vreinterpret_s8_s32(vdup_laneq_s32(row, 1));
        break;
    case 2:
        codes = vreinterpret_s8_s32(vdup_laneq_s32(row, 2));
        break;
    default:
        codes = vreinterpret_s8_s32(vdup_laneq_s32(row, 3));
    }
    const int16x8_t low = vmull_s8(vget_low_s8(weights), codes), high = vmull_s8(vget_high_s8(weights), codes);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}
#endif

#endif

/* bfloat16 values by ARM's BF16. */
#ifndef RERANKD_BFLOAT16_H
#define RERANKD_BFLOAT16_H

#include "gelu.h"

INLINE vector load_values(const value *from)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}

INLINE void store_values(value *to, vector x)
{
    vst1_u16(to, vreinterpret_u16_bf16(vcvt_bf16_f32(x)));
}

/* Store 64 bytes of a row. */
INLINE void store_block(value *to, const vector x[BLOCK_PARTS])
{
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK_PARTS; i++)
        store_values(to + i * LANES, x[i]);
}

/* Add the products of 4 bytes of a row, a lane of a register, and a line of a panel to a register of sums. */
INLINE vector add_products(vector sums, integers row, int lane, integers line)
{
    BY_LANE(vbfdotq_laneq_f32, lane, sums, vreinterpretq_bf16_s32(line), vreinterpretq_bf16_s32(row))
}

#endif

/* Rows in float32. Functions are exact to about the last bit. */
#ifndef RERANKD_VALUE_H
#define RERANKD_VALUE_H

typedef float value;
/* RUN: the most steps of 64 bytes that a GEMM by the vector unit sums at a time (gemm.h): two panels take 24 KB. */
enum { VALUE_SHIFT = 4, RUN = 12 };
#define VALUES_ARE_FLOAT32 1

#include "common.h"

INLINE vector load_values(const value *from)
{
    return load(from);
}

INLINE void store_values(value *to, vector x)
{
    store(to, x);
}

/* Store 64 bytes of a row. */
INLINE void store_block(value *to, const vector x[BLOCK_PARTS])
{
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK_PARTS; i++)
        store(to + i * LANES, x[i]);
}

/* Add the products of 4 bytes of a row, a lane of a register, and a line of a panel to a register of sums. */
INLINE vector add_products(vector sums, integers row, int lane, integers line)
{
    return multiply_add_lane(bits_of(row), lane, bits_of(line), sums);
}

/* 2^x with a relative error of 2e-7 for -126 <= x <= 127; about 0 below. (The lower bound keeps results normal: subnormal
 * float32 takes the processor a hundred times as long.) The coefficients are those of least relative error from -1/2 to 1/2. */
INLINE vector exp2_of(vector x)
{
    x = larger(all(-125.0f), x); /* this order of operands keeps NaN */
    vector n = nearest(x), r = subtract(x, n);
    vector p = all(1.327647129e-3f);
    p = multiply_add(p, r, all(9.675540961e-3f));
    p = multiply_add(p, r, all(5.550713092e-2f));
    p = multiply_add(p, r, all(2.402212024e-1f));
    p = multiply_add(p, r, all(6.931469440e-1f));
    p = multiply_add(p, r, all(1.0000001192f));
    return scaled(p, n);
}

/* 1 / x by a step of Newton's method. */
INLINE vector reciprocal(vector x)
{
    const vector y = rough_reciprocal(x);
    return multiply_add(y, subtract_product(x, y, all(1.0f)), y);
}

#include "gelu.h"

#endif

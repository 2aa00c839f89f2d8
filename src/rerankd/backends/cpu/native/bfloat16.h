/* Rows in bfloat16, as their 16 bits. Functions are as exact as results in bfloat16 need. */
#ifndef RERANKD_VALUE_H
#define RERANKD_VALUE_H

typedef uint16_t value;
/* RUN: the most steps of 64 bytes that a GEMM by the vector unit sums at a time (gemm.h): as many as there are. */
enum { VALUE_SHIFT = 5, RUN = 1 << 30 };
#define VALUES_ARE_FLOAT32 0

#include "common.h"

/* 2^x with a relative error of 3e-6, a 1000th of bfloat16's, for -100 <= x <= 127; about 0 below. (The lower bound keeps
 * results normal: subnormal float32 takes the processor a hundred times as long.) */
INLINE vector exp2_of(vector x)
{
    x = larger(all(-100.0f), x); /* this order of operands keeps NaN */
    vector n = nearest(x), r = subtract(x, n);
    vector p = all(9.56051e-3f);
    p = multiply_add(p, r, all(5.591704e-2f));
    p = multiply_add(p, r, all(2.4024981e-1f));
    p = multiply_add(p, r, all(6.9312197e-1f));
    p = multiply_add(p, r, all(9.9999919e-1f));
    return scaled(p, n);
}

/* Results are rounded to bfloat16, so reciprocals of 14 bits are enough. */
INLINE vector reciprocal(vector x)
{
    return rough_reciprocal(x);
}

#ifdef __aarch64__
#include "bfloat16_neon.h"
#else
#include "bfloat16_avx512.h"
#endif

#endif

/* Quantised values as signed bytes, 128 less than elsewhere. An instruction multiplies 8 of each of two rows by 8 of each of two
 * outputs, so panels hold 8 adjacent values of an output. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef int8_t code;
typedef int8_t signed_code;
enum { CODES_BELOW = 128, ADJACENT = 8, LARGEST_WEIGHT = 127, LARGEST_SUM = 0, CODE_ROWS = MICRO_ROWS };
#include "no_halves.h"
#define CODES_BY_PAIRS 1

INLINE void store_codes(code *to, const integers x[4])
{
    store_signed_bytes(to, x);
}

#endif

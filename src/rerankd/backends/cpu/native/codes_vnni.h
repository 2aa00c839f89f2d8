/* Quantised values as bytes, multiplied by VNNI: the sums of four products are exact in 32 bits. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint8_t code;
typedef int8_t signed_code;
/* How much less than elsewhere codes are; adjacent values of an output in panels; the largest magnitude of a weight. */
enum { CODES_BELOW = 0, ADJACENT = 4, LARGEST_WEIGHT = 127 };

INLINE void store_codes(code *to, integers x)
{
    store_bytes(to, x);
}

INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    (void)lane;
    return DOT_PRODUCTS_OF_BYTES(sums, row, line);
}

#endif

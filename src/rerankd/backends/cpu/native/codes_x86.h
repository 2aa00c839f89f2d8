/* Quantised values as bytes on x86, whose instructions multiply unsigned bytes by signed ones. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint8_t code;
typedef int8_t signed_code;

/* How much less than elsewhere codes are; adjacent values of an output in panels. */
enum { CODES_BELOW = 0, ADJACENT = 4 };

/* The largest magnitude of a weight; rows at a time in the microkernel. */
#ifdef DOT_PRODUCTS_OF_BYTES
enum { LARGEST_WEIGHT = 127, CODE_ROWS = MICRO_ROWS };
#else
enum { LARGEST_WEIGHT = 64, CODE_ROWS = ROWS_OF_BYTES };
#endif

INLINE void store_codes(code *to, const integers x[4])
{
    store_bytes(to, x);
}

INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    (void)lane;
#ifdef DOT_PRODUCTS_OF_BYTES
    return DOT_PRODUCTS_OF_BYTES(sums, row, line); /* VNNI adds four products in 32 bits */
#else
    return add_integers(sums, sums_of_halves(pairs_of_bytes(row, line))); /* 2 x 255 x 64 is less than 2^15 */
#endif
}

#endif

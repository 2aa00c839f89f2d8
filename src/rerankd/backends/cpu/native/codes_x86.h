/* Quantised values as bytes on x86, whose instructions multiply unsigned bytes by signed ones. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint8_t code;
typedef int8_t signed_code;

/* How much less than elsewhere codes are; adjacent values of an output in panels. */
enum { CODES_BELOW = 0, ADJACENT = 4 };

/* The largest code of a row; the largest magnitude of a weight; rows and lines of panels at a time in the microkernel. */
#ifdef DOT_PRODUCTS_OF_BYTES
enum { LARGEST_CODE = 255, LARGEST_WEIGHT = 127, CODE_ROWS = MICRO_ROWS, CODE_LINES = 1 };
#else
enum { LARGEST_CODE = 127, LARGEST_WEIGHT = 64, CODE_ROWS = ROWS_OF_BYTES, CODE_LINES = 2 };
#endif

INLINE void store_codes(code *to, const integers x[4])
{
    store_bytes(to, x, LARGEST_CODE); /* half a step at both ends of a row rounds to one code too many */
}

/* Add the products of 4 bytes of a row, broadcast to a register, and a line; or of two each, with lines[apart] the second. */
INLINE integers add_codes(integers sums, const integers *rows, const integers *lines, int apart)
{
#ifdef DOT_PRODUCTS_OF_BYTES
    (void)apart;
    return DOT_PRODUCTS_OF_BYTES(sums, rows[0], lines[0]); /* VNNI adds four products in 32 bits */
#else
    /* Four products are added in 16 bits: 4 x 127 x 64 is less than 2^15. So two lines share the step to 32 bits. */
    const integers pairs = add_halves(pairs_of_bytes(rows[0], lines[0]), pairs_of_bytes(rows[1], lines[apart]));
    return add_integers(sums, sums_of_halves(pairs));
#endif
}

#endif

/* Quantised values as bytes on x86, whose instructions multiply unsigned bytes by signed ones. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint8_t code;
typedef int8_t signed_code;

/* How much less than elsewhere codes are; adjacent values of an output in panels. */
enum { CODES_BELOW = 0, ADJACENT = 4 };

enum { LARGEST_WEIGHT = 127 };

/* Rows and lines of panels at a time in the microkernel; the largest sum of the positive weights, and of the negative ones, of 4
 * inputs whose products are added in 16 bits, or 0 where 32 bits hold them. */
#ifdef DOT_PRODUCTS_OF_BYTES
enum { CODE_ROWS = MICRO_ROWS, CODE_LINES = 1, LARGEST_SUM = 0 };
#else
enum { CODE_ROWS = ROWS_OF_BYTES, CODE_LINES = 2, LARGEST_SUM = 128 };
#endif

INLINE void store_codes(code *to, const integers x[4])
{
    store_bytes(to, x);
}

/* Add the products of 4 bytes of a row, which are broadcast over a register, and a line; or of CODE_LINES such pairs, of which the
 * next line lies `apart` registers further. */
INLINE integers add_codes(integers sums, const integers *rows, const integers *lines, int apart)
{
#ifdef DOT_PRODUCTS_OF_BYTES
    (void)apart;
    return DOT_PRODUCTS_OF_BYTES(sums, rows[0], lines[0]); /* VNNI adds four products in 32 bits */
#else
    /* The products of inputs i, i + 1, i + 4 and i + 5 are added in 16 bits, which hold 255 x LARGEST_SUM. So two lines share the
     * step to 32 bits. */
    const integers pairs = add_halves(pairs_of_bytes(rows[0], lines[0]), pairs_of_bytes(rows[1], lines[apart]));
    return add_integers(sums, sums_of_halves(pairs));
#endif
}

/* The largest magnitude of a row's 16-bit codes; 0 where they are no faster than values of rows. */
#ifdef ADD_PRODUCTS_OF_HALVES
enum { LARGEST_HALF = 4095 };

/* Add the products of two 16-bit codes of a row, which are broadcast over a register, and a line. */
INLINE integers add_products_of_halves(integers sums, integers row, integers line)
{
    return ADD_PRODUCTS_OF_HALVES(sums, row, line);
}
#else
#include "no_halves.h"
#endif

#endif

/* Quantised values in 16 bits, for a processor without VNNI. Its instruction for bytes adds pairs of products in 16 bits, which
 * do not hold them; the one for 16 bits adds pairs in 32, which do. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint16_t code;
typedef int16_t signed_code;
enum { CODES_BELOW = 0, ADJACENT = 2 };

INLINE void store_codes(code *to, integers x)
{
    store_wide_bytes(to, x);
}

INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    (void)lane;
    return add_products_16(sums, row, line);
}

#endif

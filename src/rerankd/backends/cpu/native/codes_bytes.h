/* Quantised values as bytes, for a processor without VNNI. Its instruction for bytes adds pairs of products in 16 bits, which hold
 * them where weights have 7 bits: 2 x 255 x 64 is less than 2^15. Another adds pairs of those in 32 bits. */
#ifndef RERANKD_CODES_H
#define RERANKD_CODES_H

typedef uint8_t code;
typedef int8_t signed_code;
enum { CODES_BELOW = 0, ADJACENT = 4, LARGEST_WEIGHT = 64 };

INLINE void store_codes(code *to, integers x)
{
    store_bytes(to, x);
}

INLINE integers add_codes(integers sums, integers row, int lane, integers line)
{
    (void)lane;
    return add_products_of_bytes(sums, row, line);
}

#endif

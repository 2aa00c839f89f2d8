/* A unit without 16-bit codes of rows: its own values are multiplied as fast. */
#ifndef RERANKD_NO_HALVES_H
#define RERANKD_NO_HALVES_H

enum { LARGEST_HALF = 0 };

INLINE integers add_products_of_halves(integers sums, integers row, integers line)
{
    (void)row;
    (void)line;
    return sums;
}

#endif

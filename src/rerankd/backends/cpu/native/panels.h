/* The packed right operand of a GEMM: panels of 16 outputs. A line of a panel holds 4 bytes of each of the 16. */
#ifndef RERANKD_PANELS_H
#define RERANKD_PANELS_H

#include "common.h"

/* Pack y [n, width], which begins at a row and a column of a matrix, as the right operand of x y^T. The GEMM sums over width;
 * rows of y, padded to the values of a column block, are its outputs. */
TARGET static void pack_panels(const matrix *y, int64_t first, int64_t column, int64_t n, int64_t width, value *out)
{
    static const value NOTHING[VALUES] __attribute__((aligned(64))) = { 0 };
    for (int64_t i = 0; i < padded(n); i += 16)
        for (int64_t j = 0; j < width; j += VALUES) {
            const void *lines[16];
            for (int r = 0; r < 16; r++)
                lines[r] = i + r < n ? address_of(y, first + i + r, column + j) : NOTHING;
            transpose_lines(lines, out + i * width + 16 * j);
        }
}

#endif

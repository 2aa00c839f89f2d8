/* Products by the vector unit, of what its registers hold. */
#ifndef RERANKD_VECTORS_H
#define RERANKD_VECTORS_H

#include "common.h"

/* Rows that are computed together. */
enum { VECTOR_ROWS = 12 };

/* Rows of lines on end by two panels, or by the left one where the right is NULL, and where their sums go: 16 of each row and
 * panel, `stride` apart, begun at 0 or at those that are `there`. depth: of lines, 4 bytes of a row each, that are summed.
 * Meanwhile `lines` of the panels that come next are asked for with every 64 bytes of a row, from `fetched` on. */
typedef struct {
    const uint8_t *rows;
    int64_t strip;
    const uint8_t *left, *right;
    int64_t depth;
    float *sums;
    int64_t stride;
    int there;
    const uint8_t *ahead[2];
    int64_t lines, fetched, end;
} factors;

/* Of up to VECTOR_ROWS rows, by bfloat16 values or by unsigned 8-bit rows and signed 8-bit panels, whose sums are int32. */
__attribute__((visibility("hidden"))) void rerankd_multiply_bf16(factors *f, int64_t count);
__attribute__((visibility("hidden"))) void rerankd_multiply_int8(factors *f, int64_t count);

#endif

/* The GEMM microkernel of the vector unit. */
#ifndef RERANKD_VECTORS_H
#define RERANKD_VECTORS_H

#include "common.h"

/* The most rows of one call. */
enum { VECTOR_ROWS = 12 };

/* The operands of one call: adjacent rows of the blocked layout by two panels, or by the left one where the right is NULL.
 *
 * depth: the lines of a panel that are summed over, each by 4 bytes of a row
 * sums: 16 for each row and panel, rows `stride` apart; added to the values that they have, if `accumulate`, else written
 * ahead: the panels of the next call. With every 64 bytes of a row `lines` of them are prefetched, from `fetched` to `end` */
typedef struct {
    const uint8_t *rows;
    int64_t block_stride;
    const uint8_t *left, *right;
    int64_t depth;
    float *sums;
    int64_t stride;
    int accumulate;
    const uint8_t *ahead[2];
    int64_t lines, fetched, end;
} microkernel;

/* Multiply up to VECTOR_ROWS rows: bfloat16 by bfloat16 into float32, or uint8 rows by int8 panels into int32. */
__attribute__((visibility("hidden"))) void rerankd_multiply_bf16(microkernel *f, int64_t count);
__attribute__((visibility("hidden"))) void rerankd_multiply_int8(microkernel *f, int64_t count);

#endif

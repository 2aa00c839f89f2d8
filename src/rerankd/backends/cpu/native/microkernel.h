/* The GEMM microkernel of the vector unit.
 *
 * The registers hold the sums of MICRO_ROWS rows by MICRO_PANELS panels until they are complete. broadcasts.h (x86), lanes.h and
 * pairs.h (ARM) have the loop that adds to them.
 */
#ifndef RERANKD_MICROKERNEL_H
#define RERANKD_MICROKERNEL_H

/* What a GEMM multiplies: values of rows, or their codes of 8 or 16 bits, whose sums are integers. */
enum { WHOLE_VALUES, BYTES, HALVES };

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

/* Prefetch the lines of the next panels that are due with 64 bytes of a row. */
INLINE void fetch_ahead(microkernel *f)
{
    for (int64_t n = 0; n < f->lines && f->fetched < f->end; n++, f->fetched += 64) {
        prefetch_far(f->ahead[0] + f->fetched);
        prefetch_far(f->ahead[1] + f->fetched);
    }
}

#ifdef __aarch64__
#include "lanes.h"
#else
#include "broadcasts.h"
#endif

/* The same by both panels, or by the left one, MICRO_PANELS at a time. */
INLINE void multiply_by(microkernel *f, int count, int both, int kind)
{
    if (both && MICRO_PANELS == 2) {
        multiply_rows(f, count, 0, 2, kind);
    } else {
        multiply_rows(f, count, 0, 1, kind);
        if (both)
            multiply_rows(f, count, 1, 1, kind);
    }
}

/* The same where the number of rows, up to MICRO_ROWS or of codes CODE_ROWS, is known only at run time. */
INLINE void multiply_some(microkernel *f, int64_t count, int both, int kind)
{
#define CASE(n)                                                                                                       \
    case n:                                                                                                           \
        if (kind != BYTES || n <= CODE_ROWS)                                                                          \
            multiply_by(f, n, both, kind);                                                                            \
        break
    switch (count) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
#if MICRO_CASES > 4
        CASE(5);
        CASE(6);
#endif
#if MICRO_CASES > 6
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
#endif
    }
#undef CASE
}

/* Rows and panels in the dtype of rows into float32. */
TARGET static void multiply_values(microkernel *f, int64_t count)
{
    if (f->right)
        multiply_some(f, count, 1, WHOLE_VALUES);
    else
        multiply_some(f, count, 0, WHOLE_VALUES);
}

/* 8-bit codes of rows, which x86 has unsigned, and signed ones of panels into int32. */
TARGET static void multiply_codes(microkernel *f, int64_t count)
{
    multiply_some(f, count, 1, BYTES);
}

/* Signed 16-bit codes into int32. */
TARGET static void multiply_halves(microkernel *f, int64_t count)
{
    multiply_some(f, count, 1, HALVES);
}

#endif

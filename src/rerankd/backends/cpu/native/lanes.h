/* The loop of the microkernel on ARM.
 *
 * One instruction multiplies a quarter of a line of a panel (4 outputs) by 4 bytes of a row, a lane of the 16 bytes that a
 * register holds. So 4 loads of rows and 16 of lines serve 64 instructions.
 */
#ifndef RERANKD_LANES_H
#define RERANKD_LANES_H

#if CODES_BY_PAIRS
#include "pairs.h"
#endif

/* Add the products of 4 bytes of a row and a part of a line. */
INLINE vector add_part(vector sums, integers row, int lane, integers part, int quantized)
{
#if !CODES_BY_PAIRS
    if (quantized)
        return bits_of(add_codes(as_bits(sums), row, lane, part));
#endif
    (void)quantized;
    return add_products(sums, row, lane, part);
}

/* Add the products of a line of a panel and a lane of each row. */
INLINE void multiply_line(vector *s, int count, const uint8_t *line, const integers *rows, int lane, int quantized)
{
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++) {
        const integers part = load_integers(line + i * 4 * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < count; r++)
            s[r * PARTS + i] = add_part(s[r * PARTS + i], rows[r], lane, part, quantized);
    }
    __asm__ volatile("" ::: "memory"); /* GCC would load more lines ahead than there are registers. */
}

/* Multiply `count` rows by a panel: the left one, or the right one if `first`. */
INLINE void multiply_rows(microkernel *f, int count, int first, int panels, int quantized)
{
    (void)panels; /* MICRO_PANELS is 1 */
#if CODES_BY_PAIRS
    if (quantized) {
        multiply_pairs(f, count, first);
        return;
    }
#endif
    const uint8_t *line = first ? f->right : f->left, *block = f->rows;
    vector s[MICRO_ROWS * PARTS];
    float *const sums = f->sums + 16 * first;
#pragma GCC unroll 4
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++)
            s[r * PARTS + i] = f->accumulate ? load(sums + r * f->stride + i * LANES) : all(0.0f);
    for (int64_t k = 0; k < f->depth; k += 16, block += f->block_stride) {
        fetch_ahead(f);
        const uint8_t *x = block, *stop = block + 4 * (f->depth - k < 16 ? f->depth - k : 16);
        integers rows[MICRO_ROWS];
        for (; x + 16 <= stop; x += 16) {
#pragma GCC unroll 4
            for (int r = 0; r < count; r++)
                rows[r] = load_integers(x + r * TILE_BYTES);
#pragma GCC unroll 4
            for (int lane = 0; lane < 4; lane++, line += 64)
                multiply_line(s, count, line, rows, lane, quantized);
        }
        for (; x < stop; x += 4, line += 64) {
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) {
                int32_t bytes;
                memcpy(&bytes, x + r * TILE_BYTES, sizeof bytes);
                rows[r] = all_integers(bytes);
            }
            multiply_line(s, count, line, rows, 0, quantized);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++)
            store(sums + r * f->stride + i * LANES, s[r * PARTS + i]);
}

#endif

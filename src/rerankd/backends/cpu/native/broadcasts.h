/* The loop of the microkernel on x86.
 *
 * One instruction multiplies a line of a panel (16 outputs, or 8 of them) by 4 bytes of a row that are broadcast over a register.
 * With AVX-512 two lines and 12 broadcasts serve 24 instructions, with AVX2 two half lines and 6 broadcasts serve 12: so the
 * caches keep up. Codes may take two lines at a time (codes_x86.h).
 */
#ifndef RERANKD_BROADCASTS_H
#define RERANKD_BROADCASTS_H

/* Multiply `count` rows by the panels first, first + 1 and so on, `panels` of them. */
INLINE void multiply_rows(microkernel *f, int count, int first, int panels, int kind)
{
    const uint8_t *at[2] = { first ? f->right : f->left, f->right };
    vector s[MICRO_ROWS * MICRO_PANELS * PARTS];
    float *const sums = f->sums + 16 * first;
    const int width = panels * PARTS;
#pragma GCC unroll 16
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int i = 0; i < width; i++)
            s[r * width + i] = f->accumulate ? load(sums + r * f->stride + i * LANES) : all(0.0f);
    const int at_once = kind == BYTES ? CODE_LINES : 1;
    const uint8_t *block = f->rows;
    for (int64_t k = 0; k < f->depth; k += 16, block += f->block_stride) {
        fetch_ahead(f);
        const uint8_t *x = block, *stop = block + 4 * (f->depth - k < 16 ? f->depth - k : 16);
        for (; x < stop; x += 4 * at_once) {
            integers lines[CODE_LINES * MICRO_PANELS * PARTS];
#pragma GCC unroll 8
            for (int i = 0; i < at_once * width; i++)
                lines[i] = load_integers(at[i % width / PARTS] + i / width * 64 + i % PARTS * 4 * LANES);
            at[0] += 64 * at_once;
            if (panels > 1)
                at[1] += 64 * at_once;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                integers row[CODE_LINES];
#pragma GCC unroll 2
                for (int i = 0; i < at_once; i++) {
                    int32_t bytes;
                    memcpy(&bytes, x + r * TILE_BYTES + 4 * i, sizeof bytes);
                    row[i] = all_integers(bytes);
                }
#pragma GCC unroll 4
                for (int i = 0; i < width; i++) {
                    vector *const sum = s + r * width + i;
                    if (kind == BYTES)
                        *sum = bits_of(add_codes(as_bits(*sum), row, lines + i, width));
                    else if (kind == HALVES)
                        *sum = bits_of(add_products_of_halves(as_bits(*sum), row[0], lines[i]));
                    else
                        *sum = add_products(*sum, row[0], 0, lines[i]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int i = 0; i < width; i++)
            store(sums + r * f->stride + i * LANES, s[r * width + i]);
}

#endif

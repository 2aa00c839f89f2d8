/* The GEMM microkernel of the vector unit.
 *
 * One instruction multiplies a line of a panel (16 outputs, or 8 of them) by 4 bytes of a row that are broadcast over a register.
 * The registers hold the sums of MICRO_ROWS rows by MICRO_PANELS panels. With AVX-512 two lines and 12 broadcasts serve 24
 * instructions, with AVX2 two half lines and 6 broadcasts serve 12: so the caches keep up, and the sums stay in registers until
 * they are complete.
 */
#ifndef RERANKD_MICROKERNEL_H
#define RERANKD_MICROKERNEL_H

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

/* Multiply `count` rows by the panels first, first + 1 and so on, `panels` of them. */
INLINE void multiply_rows(microkernel *f, int count, int first, int panels, int quantized)
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
    const uint8_t *block = f->rows;
    for (int64_t k = 0; k < f->depth; k += 16, block += f->block_stride) {
        for (int64_t n = 0; n < f->lines && f->fetched < f->end; n++, f->fetched += 64) {
            _mm_prefetch((const char *)f->ahead[0] + f->fetched, _MM_HINT_T1);
            _mm_prefetch((const char *)f->ahead[1] + f->fetched, _MM_HINT_T1);
        }
        const uint8_t *x = block, *stop = block + 4 * (f->depth - k < 16 ? f->depth - k : 16);
        for (; x < stop; x += 4) {
            integers lines[MICRO_PANELS * PARTS];
#pragma GCC unroll 4
            for (int i = 0; i < width; i++)
                lines[i] = load_integers(at[i / PARTS] + i % PARTS * 4 * LANES);
            at[0] += 64;
            if (panels > 1)
                at[1] += 64;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                int32_t bytes;
                memcpy(&bytes, x + r * TILE_BYTES, sizeof bytes);
                const integers broadcast = all_integers(bytes);
#pragma GCC unroll 4
                for (int i = 0; i < width; i++)
                    s[r * width + i] = quantized ? bits_of(add_codes(as_bits(s[r * width + i]), broadcast, lines[i]))
                                                 : add_products(s[r * width + i], broadcast, lines[i]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
        for (int i = 0; i < width; i++)
            store(sums + r * f->stride + i * LANES, s[r * width + i]);
}

/* The same by both panels, or by the left one, MICRO_PANELS at a time. */
INLINE void multiply_by(microkernel *f, int count, int both, int quantized)
{
    if (both && MICRO_PANELS == 2) {
        multiply_rows(f, count, 0, 2, quantized);
    } else {
        multiply_rows(f, count, 0, 1, quantized);
        if (both)
            multiply_rows(f, count, 1, 1, quantized);
    }
}

/* The same where the number of rows, up to MICRO_ROWS, is known only at run time. */
INLINE void multiply_some(microkernel *f, int64_t count, int both, int quantized)
{
#define CASE(n)                                                                                                       \
    case n:                                                                                                           \
        multiply_by(f, n, both, quantized);                                            \
        break
    switch (count) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
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
        multiply_some(f, count, 1, 0);
    else
        multiply_some(f, count, 0, 0);
}

/* Unsigned codes of rows and signed ones of panels into int32. */
TARGET static void multiply_codes(microkernel *f, int64_t count)
{
    multiply_some(f, count, 1, 1);
}

#endif

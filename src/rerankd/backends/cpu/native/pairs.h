/* The loop of the microkernel over codes on ARM with i8mm.
 *
 * One instruction multiplies 8 codes of each of two rows by 8 of each of two outputs, and adds to the four sums of a register. So
 * 4 loads of half a register and 8 of a panel serve 16 instructions, each of which does twice the work of a dot product.
 */
#ifndef RERANKD_PAIRS_H
#define RERANKD_PAIRS_H

enum { PAIRS = (MICRO_ROWS + 1) / 2, OUTPUT_PAIRS = 8 };

/* The sums of two rows by four outputs, as they lie in memory, to those of two pairs of outputs, or back. */
INLINE void swap_middle(vector *a, vector *b)
{
    const float64x2_t first = vreinterpretq_f64_f32(*a), second = vreinterpretq_f64_f32(*b);
    *a = vreinterpretq_f32_f64(vzip1q_f64(first, second));
    *b = vreinterpretq_f32_f64(vzip2q_f64(first, second));
}

/* Multiply the codes of `count` rows by a panel: the left one, or the right one if `first`. The depth is a multiple of 16. Where
 * rows are odd, the last one pairs with itself. */
INLINE void multiply_pairs(microkernel *f, int count, int first)
{
    const int pairs = (count + 1) / 2;
    const int8_t *line = (const int8_t *)(first ? f->right : f->left), *block = (const int8_t *)f->rows;
    float *const sums = f->sums + 16 * first;
    integers s[PAIRS * OUTPUT_PAIRS];
#pragma GCC unroll 2
    for (int p = 0; p < pairs; p++)
#pragma GCC unroll 4
        for (int i = 0; i < OUTPUT_PAIRS; i += 2) {
            vector a = all(0.0f), b = a;
            if (f->accumulate) {
                a = load(sums + 2 * p * f->stride + 2 * i);
                if (2 * p + 1 < count)
                    b = load(sums + (2 * p + 1) * f->stride + 2 * i);
                swap_middle(&a, &b);
            }
            s[p * OUTPUT_PAIRS + i] = as_bits(a);
            s[p * OUTPUT_PAIRS + i + 1] = as_bits(b);
        }
    for (int64_t k = 0; k < f->depth; k += 16, block += f->block_stride) {
        fetch_ahead(f);
        for (const int8_t *x = block; x < block + TILE_BYTES; x += 8, line += 128) {
            int8x16_t rows[PAIRS];
#pragma GCC unroll 2
            for (int p = 0; p < pairs; p++) {
                const int8_t *row = x + 2 * p * TILE_BYTES;
                rows[p] = vcombine_s8(vld1_s8(row), vld1_s8(2 * p + 1 < count ? row + TILE_BYTES : row));
            }
#pragma GCC unroll 8
            for (int i = 0; i < OUTPUT_PAIRS; i++) {
                const int8x16_t outputs = vld1q_s8(line + 16 * i);
#pragma GCC unroll 2
                for (int p = 0; p < pairs; p++)
                    s[p * OUTPUT_PAIRS + i] = vmmlaq_s32(s[p * OUTPUT_PAIRS + i], rows[p], outputs);
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < pairs; p++)
#pragma GCC unroll 4
        for (int i = 0; i < OUTPUT_PAIRS; i += 2) {
            vector a = bits_of(s[p * OUTPUT_PAIRS + i]), b = bits_of(s[p * OUTPUT_PAIRS + i + 1]);
            swap_middle(&a, &b);
            store(sums + 2 * p * f->stride + 2 * i, a);
            if (2 * p + 1 < count)
                store(sums + (2 * p + 1) * f->stride + 2 * i, b);
        }
}

#endif

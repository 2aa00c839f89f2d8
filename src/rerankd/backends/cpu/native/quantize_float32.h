/* Rows as integers of 8 or 16 bits, computed in float32. */
#ifndef RERANKD_QUANTIZE_H
#define RERANKD_QUANTIZE_H

#include "rows.h"

enum { CODES = TILE_BYTES / sizeof(code) };

/* Rows that a loop interleaves; vectors that are stored at a time. */
enum { TOGETHER = 4, STORED = 4 };

INLINE void quantize_together(const quantize *o, int64_t first, int64_t count)
{
    vector low[TOGETHER], high[TOGETHER], nan[TOGETHER];
    for (int r = 0; r < count; r++)
        low[r] = high[r] = nan[r] = all(0.0f);
    for (int64_t j = 0; j < o->width; j += LANES) {
        const value *at = address_of(&o->x, first, j);
        for (int r = 0; r < count; r++) {
            const vector v = load_values(at + r * o->x.row);
            low[r] = smaller(v, low[r]); /* these orders of operands drop NaN */
            high[r] = larger(v, high[r]);
            nan[r] = multiply_add(v, all(0.0f), nan[r]); /* NaN or infinity times 0 is NaN */
        }
    }
    vector factors[TOGETHER];
    integers shifts[TOGETHER];
    for (int r = 0; r < count; r++) {
        const float least = smallest_of(low[r]), range = (largest_of(high[r]) - least) / 255.0f + sum_of(nan[r]);
        const float step = range < FLT_MIN * 256 ? FLT_MIN * 256 : range; /* the comparison keeps NaN */
        const float zero = rintf(-least / step) - CODES_BELOW; /* minus 0.0f changes no value */
        o->steps[first + r] = step;
        o->zeros[first + r] = zero;
        factors[r] = all(1.0f / step);
        shifts[r] = all_integers((int32_t)lrintf(zero));
    }
    for (int64_t j = 0; j < o->width; j += STORED * LANES) {
        code *to = (code *)((uint8_t *)o->codes + first * TILE_BYTES + j / CODES * o->block_stride) + j % CODES;
        for (int r = 0; r < count; r++) {
            integers x[STORED];
#pragma GCC unroll 4
            for (int i = 0; i < STORED; i++) {
                const value *at = address_of(&o->x, first + r, j + i * LANES);
                x[i] = add_integers(integers_of(multiply(load_values(at), factors[r])), shifts[r]);
            }
            store_codes(to + r * CODES, x);
        }
    }
}

#ifdef ADD_PRODUCTS_OF_HALVES
/* The same in 16 bits, over a range that is symmetric about 0. */
INLINE void quantize_to_halves(const quantize *o, int64_t first, int64_t count)
{
    enum { HALVES_IN_BLOCK = TILE_BYTES / sizeof(int16_t) };
    vector largest[TOGETHER], nan[TOGETHER], factors[TOGETHER];
    for (int r = 0; r < count; r++)
        largest[r] = nan[r] = all(0.0f);
    for (int64_t j = 0; j < o->width; j += LANES) {
        const value *at = address_of(&o->x, first, j);
        for (int r = 0; r < count; r++) {
            const vector v = load_values(at + r * o->x.row);
            largest[r] = larger(absolute(v), largest[r]); /* this order of operands drops NaN */
            nan[r] = multiply_add(v, all(0.0f), nan[r]); /* NaN or infinity times 0 is NaN */
        }
    }
    for (int r = 0; r < count; r++) {
        const float range = largest_of(largest[r]) / LARGEST_HALF + sum_of(nan[r]);
        const float step = range < FLT_MIN * 256 ? FLT_MIN * 256 : range; /* the comparison keeps NaN */
        o->steps[first + r] = step;
        o->zeros[first + r] = 0.0f;
        factors[r] = all(1.0f / step);
    }
    for (int64_t j = 0; j < o->width; j += 2 * LANES) {
        int16_t *const block = (int16_t *)((uint8_t *)o->codes + j / HALVES_IN_BLOCK * o->block_stride);
        for (int r = 0; r < count; r++) {
            integers x[2];
            for (int i = 0; i < 2; i++) {
                const value *at = address_of(&o->x, first + r, j + i * LANES);
                x[i] = integers_of(multiply(load_values(at), factors[r]));
            }
            store_halves(block + (first + r) * HALVES_IN_BLOCK + j % HALVES_IN_BLOCK, x);
        }
    }
}
#else
INLINE void quantize_to_halves(const quantize *o, int64_t first, int64_t count)
{
    (void)o, (void)first, (void)count;
}
#endif

INLINE void quantize_some(const quantize *o, int64_t first, int64_t count)
{
    if (LARGEST_HALF && o->halves)
        quantize_to_halves(o, first, count);
    else
        quantize_together(o, first, count);
}

INLINE void quantize_rows(const quantize *o, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i += TOGETHER)
        if (end - i >= TOGETHER)
            quantize_some(o, i, TOGETHER);
        else
            quantize_some(o, i, end - i);
}
ROW_OPERATION(quantize, rows)

#endif

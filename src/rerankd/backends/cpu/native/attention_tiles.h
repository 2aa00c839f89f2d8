/* Attention by AMX tiles. */
#ifndef RERANKD_ATTENTION_TILES_H
#define RERANKD_ATTENTION_TILES_H

#include "attention.h"
#include "tiles.h"

/* The logits of 16 or 32 (m) queries for n packed keys (a multiple of 32), summed over head_dim: c [m, n].
 *
 * A panel holds 16 keys as pairs of adjacent values of head_dim: a tile loads 16 such pairs as they are.
 */
INLINE void logits_of(int64_t m, int64_t n, int64_t head_dim, const matrix *q, const value *keys, float *c, int64_t c_stride)
{
    const size_t q_bytes = 2 * q->row, c_bytes = 4 * c_stride;
    __asm__ volatile("" ::: "memory"); /* The compiler does not see that tiles read memory: all stores come before. */
    for (int64_t j = 0; j < n; j += 16) {
        const value *panel = keys + j * head_dim;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t x = 0; x < head_dim; x += 32) {
            _tile_loadd(6, panel + 16 * x, TILE_BYTES);
            _tile_loadd(4, address_of(q, 0, x), q_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (m > 16) {
                _tile_loadd(5, address_of(q, 16, x), q_bytes);
                _tile_dpbf16ps(1, 5, 6);
            }
        }
        _tile_stored(0, c + j, c_bytes);
        if (m > 16)
            _tile_stored(1, c + 16 * c_stride + j, c_bytes);
    }
}

/* 2 x 2 tiles of sums += weights [m, k] by packed values, of panels of `depth` rows. */
INLINE void add_values(int64_t m, int64_t k, const value *weights, int64_t stride, const value *values, int64_t depth)
{
    const size_t bytes = 2 * stride;
    for (int64_t x = 0; x < k; x += 32) {
        _tile_loadd(4, weights + x, bytes);
        _tile_loadd(6, values + 16 * x, TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, values + 16 * (depth + x), TILE_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        if (m > 16) {
            _tile_loadd(5, weights + 16 * stride + x, bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

/* logits [rows, shared and own keys] of up to QUERIES rows of one head. */
INLINE void logits_by_tiles(const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                            const matrix *queries, int64_t before, int64_t behind)
{
    const int64_t height = rows > 16 ? 32 : 16, width = before + behind;
    matrix q = *queries;
    if (rows < height) { /* a tile would load rows behind the last one */
        for (int64_t i = 0; i < height; i++)
            for (int64_t j = 0; j < head_dim; j += 32)
                _mm512_storeu_si512(s->queries + i * head_dim + j,
                                    i < rows ? _mm512_loadu_si512(address_of(&q, i, j)) : _mm512_setzero_si512());
        q = (matrix){ s->queries, head_dim, 32 };
    }
    logits_of(height, before, head_dim, &q, shared->keys, s->logits, width);
    logits_of(height, behind, head_dim, &q, own->keys, s->logits + before, width);
}

/* sums [rows, head_dim] of values by their weights. */
INLINE void values_by_tiles(const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                            int64_t before, int64_t behind)
{
    const int64_t height = rows > 16 ? 32 : 16, width = before + behind, depth = padded(own->count);
    memset(s->weights + rows * width, 0, (size_t)(height - rows) * width * sizeof(value));
    __asm__ volatile("" ::: "memory"); /* as in logits_of */
    for (int64_t j = 0; j < head_dim; j += 32) {
        float *upper = s->sums + j, *lower = upper + 16 * head_dim;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        add_values(height, before, s->weights, width, shared->values + j * before, before);
        add_values(height, behind, s->weights + before, width, own->values + j * depth, depth);
        _tile_stored(0, upper, 4 * head_dim);
        _tile_stored(1, upper + 16, 4 * head_dim);
        if (height > 16) {
            _tile_stored(2, lower, 4 * head_dim);
            _tile_stored(3, lower + 16, 4 * head_dim);
        }
    }
}

/* Attention of up to QUERIES query rows. */
TARGET static void attend_by_tiles(const queries_of_head *a)
{
    const int64_t before = padded(a->shared->count), behind = padded(a->visible);
    const matrix weights = { a->s->weights, before + behind, VALUES };
    vector totals[QUERIES];
    logits_by_tiles(a->s, a->shared, a->own, a->rows, a->head_dim, a->queries, before, behind);
    weights_of(a, before, behind, &weights, totals);
    values_by_tiles(a->s, a->shared, a->own, a->rows, a->head_dim, before, behind);
    divide_sums(a, totals);
}

TARGET static void work_attention_by_tiles(const team *t, int64_t thread, const void *o)
{
    begin_tiles();
    attention_by(t, thread, o, attend_by_tiles, QUERIES / 2, QUERIES);
    end_tiles();
}

#endif

/* Operations on each row by itself: norms, rotary embedding, quantisation and copies into the blocked layout. */
#ifndef RERANKD_ROWS_H
#define RERANKD_ROWS_H

/* Rows that a loop interleaves: their lines are adjacent in the blocked layout; and rows of a piece of work. */
enum { ABREAST = 8, PIECE_ROWS = 32 };

INLINE int64_t pieces_of(int64_t rows)
{
    return (rows + PIECE_ROWS - 1) / PIECE_ROWS;
}

/* The end of the rows of a piece that begins at a row. */
INLINE int64_t piece_end(int64_t first, int64_t rows)
{
    return rows - first < PIECE_ROWS ? rows : first + PIECE_ROWS;
}

/* An operation on rows by themselves: its number of rows, and a function that computes those from `first` to `end`. */
#define ROW_OPERATION(type, count)                                                                                    \
    TARGET static void NAMED_FOR(share, type)(team *t, const void *o)                                                \
    {                                                                                                                 \
        share_pieces(t, pieces_of(((const type *)o)->count));                                                         \
    }                                                                                                                 \
    TARGET static void NAMED_FOR(work, type)(const team *t, int64_t thread, const void *o)                           \
    {                                                                                                                 \
        for (int64_t piece; (piece = take_piece(t, thread)) >= 0;)                                                    \
            NAMED_FOR(type, rows)(o, PIECE_ROWS * piece, piece_end(PIECE_ROWS * piece, ((const type *)o)->count));   \
    }

/* RMSNorm of `count` rows from `first` on. Where there are fewer than ABREAST, the first row fills their places, and only
 * `count` results are stored. */
INLINE void rms_norm_abreast(int64_t first, int64_t count, int64_t width, const matrix *x, const value *weight, float eps,
                          const matrix *out)
{
    const value *from[ABREAST];
    vector sums[ABREAST];
    for (int64_t r = 0; r < ABREAST; r++) {
        from[r] = address_of(x, r < count ? first + r : first, 0);
        sums[r] = all(0.0f);
    }
    for (int64_t j = 0; j < width; j += LANES)
        for (int64_t r = 0; r < ABREAST; r++) {
            vector v = load_values(from[r] + (j >> VALUE_SHIFT) * x->columns + (j & (VALUES - 1)));
            sums[r] = multiply_add(v, v, sums[r]);
        }
    for (int64_t r = 0; r < ABREAST; r++)
        sums[r] = all(1.0f / sqrtf(sum_of(sums[r]) / (float)width + eps));
    for (int64_t j = 0; j < width; j += LANES) {
        const vector w = load_values(weight + j);
        for (int64_t r = 0; r < count; r++) {
            vector v = load_values(from[r] + (j >> VALUE_SHIFT) * x->columns + (j & (VALUES - 1)));
            store_values(address_of(out, first + r, j), multiply(multiply(v, sums[r]), w));
        }
    }
}

INLINE void rms_norm_rows(const rms_norm *o, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i += ABREAST)
        if (end - i >= ABREAST)
            rms_norm_abreast(i, ABREAST, o->width, &o->x, o->weight, (float)o->eps, &o->out);
        else
            rms_norm_abreast(i, end - i, o->width, &o->x, o->weight, (float)o->eps, &o->out);
}
ROW_OPERATION(rms_norm, rows)

/* RMSNorm and rotary embedding of the head that begins at column `begin`, of `count` rows from `first` on. */
INLINE void norm_rope_head(int64_t first, int64_t count, int64_t begin, const norm_rope *o)
{
    const int64_t head_dim = o->head_dim, half = head_dim / 2;
    const matrix *x = &o->x, *out = &o->out;
    const value *weight = o->weight, *cosines = o->cosines, *sines = o->sines;
    const float eps = (float)o->eps;
    vector scales[ABREAST];
    for (int64_t r = 0; r < count; r++)
        scales[r] = all(0.0f);
    for (int64_t j = 0; j < head_dim; j += LANES) {
        const value *at = address_of(x, first, begin + j);
        for (int64_t r = 0; r < count; r++) {
            prefetch_near(at + (ABREAST + r) * x->row);
            vector v = load_values(at + r * x->row);
            scales[r] = multiply_add(v, v, scales[r]);
        }
    }
    for (int64_t r = 0; r < count; r++)
        scales[r] = all(1.0f / sqrtf(sum_of(scales[r]) / (float)head_dim + eps));
    for (int64_t j = 0; j < half; j += LANES) {
        const value *left = address_of(x, first, begin + j), *right = address_of(x, first, begin + half + j);
        value *to_left = address_of(out, first, begin + j), *to_right = address_of(out, first, begin + half + j);
        const vector wa = load_values(weight + j), wb = load_values(weight + half + j);
        for (int64_t r = 0; r < count; r++) {
            vector a = multiply(multiply(load_values(left + r * x->row), scales[r]), wa);
            vector b = multiply(multiply(load_values(right + r * x->row), scales[r]), wb);
            vector c = load_values(cosines + (first + r) * half + j), s = load_values(sines + (first + r) * half + j);
            store_values(to_left + r * out->row, multiply_subtract(a, c, multiply(b, s)));
            store_values(to_right + r * out->row, multiply_add(b, c, multiply(a, s)));
        }
    }
}

INLINE void norm_rope_rows(const norm_rope *o, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i += ABREAST)
        for (int64_t h = 0; h < o->heads; h++)
            if (end - i >= ABREAST)
                norm_rope_head(i, ABREAST, h * o->head_dim, o);
            else
                norm_rope_head(i, end - i, h * o->head_dim, o);
}
ROW_OPERATION(norm_rope, rows)

/* Rows that a loop of LayerNorm interleaves. */
enum { NORMED = 4 };

/* LayerNorm of `count` rows of `out` from `first` on, in place and into `rounded`. sums: each row's sum */
INLINE void norm_sums(int64_t first, int64_t count, int64_t width, vector *sums, const float *weight, const float *bias,
                      float eps, const matrix *out, const matrix *rounded)
{
    const int apart = rounded->at != out->at;
    vector squares[NORMED];
    for (int64_t r = 0; r < count; r++) {
        sums[r] = all(sum_of(sums[r]) / (float)width);
        squares[r] = all(0.0f);
    }
    for (int64_t j = 0; j < width; j += LANES)
        for (int64_t r = 0; r < count; r++) {
            vector v = subtract(load(float_at(out, first + r, j)), sums[r]);
            squares[r] = multiply_add(v, v, squares[r]);
        }
    for (int64_t r = 0; r < count; r++)
        squares[r] = all(1.0f / sqrtf(sum_of(squares[r]) / (float)width + eps));
    for (int64_t j = 0; j < width; j += LANES)
        for (int64_t r = 0; r < count; r++) {
            float *to = float_at(out, first + r, j);
            vector v = multiply(subtract(load(to), sums[r]), squares[r]);
            v = multiply_add(v, load(weight + j), load(bias + j));
            store(to, v);
            if (apart)
                store_values(address_of(rounded, first + r, j), v);
        }
}

INLINE void add_layer_norm_rows(const add_layer_norm *o, int64_t first, int64_t end)
{
    const int64_t width = o->width;
    for (int64_t i = first; i < end; i += NORMED) {
        const int64_t count = end - i < NORMED ? end - i : NORMED;
        vector sums[NORMED];
        for (int64_t r = 0; r < count; r++)
            sums[r] = all(0.0f);
        for (int64_t j = 0; j < width; j += LANES)
            for (int64_t r = 0; r < count; r++) {
                vector v = add(load(float_at(&o->x, i + r, j)), load_values(address_of(&o->delta, i + r, j)));
                store(float_at(&o->out, i + r, j), v);
                sums[r] = add(sums[r], v);
            }
        norm_sums(i, count, width, sums, o->weight, o->bias, (float)o->eps, &o->out, &o->rounded);
    }
}
ROW_OPERATION(add_layer_norm, rows)

INLINE const value *looked_up_row(const lookup *table, int64_t i, int64_t width)
{
    return (const value *)table->values + (table->indices ? table->indices[i] : 0) * width;
}

INLINE void embed_layer_norm_rows(const embed_layer_norm *o, int64_t first, int64_t end)
{
    const int64_t width = o->width;
    for (int64_t i = first; i < end; i += NORMED) {
        const int64_t count = end - i < NORMED ? end - i : NORMED;
        vector sums[NORMED];
        for (int64_t r = 0; r < count; r++) {
            const value *from[3];
            for (int64_t t = 0; t < 3; t++)
                from[t] = looked_up_row(o->tables + t, i + r, width);
            sums[r] = all(0.0f);
            for (int64_t j = 0; j < width; j += LANES) {
                vector v = add(load_values(from[0] + j), load_values(from[1] + j));
                v = add(v, load_values(from[2] + j));
                store(float_at(&o->out, i + r, j), v);
                sums[r] = add(sums[r], v);
            }
        }
        norm_sums(i, count, width, sums, o->weight, o->bias, (float)o->eps, &o->out, &o->rounded);
    }
}
ROW_OPERATION(embed_layer_norm, rows)

INLINE void to_blocked_rows(const to_blocked *o, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i++)
        for (int64_t j = 0; j < o->width; j += VALUES)
            memcpy(address_of(&o->out, i, j), address_of(&o->x, i, j), TILE_BYTES);
}
ROW_OPERATION(to_blocked, rows)

INLINE void index_select_rows(const index_select *o, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i++)
        for (int64_t j = 0; j < o->segments; j++)
            memcpy(o->out + i * o->out_row + j * o->out_segment, o->x + o->indices[i] * o->x_row + j * o->x_segment,
                   (size_t)o->segment_bytes);
}
ROW_OPERATION(index_select, count)

#endif

/* Operations on each row by itself: norms, rotary embedding, quantisation and copies into the blocked layout. */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"

#include <float.h>

/* Rows that a loop interleaves: their lines are adjacent in the blocked layout. */
enum { ABREAST = 8 };

/* RMSNorm of `count` rows from `first` on. Where there are fewer than ABREAST, the first row fills their places, and only
 * `count` results are stored. */
INLINE void rms_norm_rows(int64_t first, int64_t count, int64_t width, const matrix *x, const bf16 *weight, float eps,
                          const matrix *out)
{
    const bf16 *from[ABREAST];
    __m512 sums[ABREAST];
    for (int64_t r = 0; r < ABREAST; r++) {
        from[r] = address_of(x, r < count ? first + r : first, 0);
        sums[r] = _mm512_setzero_ps();
    }
    for (int64_t j = 0; j < width; j += 16)
        for (int64_t r = 0; r < ABREAST; r++) {
            __m512 v = load_bf16(from[r] + (j >> 5) * x->columns + (j & 31));
            sums[r] = _mm512_fmadd_ps(v, v, sums[r]);
        }
    for (int64_t r = 0; r < ABREAST; r++)
        sums[r] = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sums[r]) / (float)width + eps));
    for (int64_t j = 0; j < width; j += 16) {
        const __m512 w = load_bf16(weight + j);
        for (int64_t r = 0; r < count; r++) {
            __m512 v = load_bf16(from[r] + (j >> 5) * x->columns + (j & 31));
            store_bf16(address_of(out, first + r, j), _mm512_mul_ps(_mm512_mul_ps(v, sums[r]), w));
        }
    }
}

TARGET void rerankd_rms_norm(int threads, const rms_norm *o)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < o->rows; i += ABREAST)
        if (o->rows - i >= ABREAST)
            rms_norm_rows(i, ABREAST, o->width, &o->x, o->weight, (float)o->eps, &o->out);
        else
            rms_norm_rows(i, o->rows - i, o->width, &o->x, o->weight, (float)o->eps, &o->out);
}

/* RMSNorm and rotary embedding of the head that begins at column `begin`, of `count` rows from `first` on. */
INLINE void norm_rope_head(int64_t first, int64_t count, int64_t begin, const norm_rope *o)
{
    const int64_t head_dim = o->head_dim, half = head_dim / 2;
    const matrix *x = &o->x, *out = &o->out;
    const bf16 *weight = o->weight;
    const float eps = (float)o->eps;
    __m512 scales[ABREAST];
    for (int64_t r = 0; r < count; r++)
        scales[r] = _mm512_setzero_ps();
    for (int64_t j = 0; j < head_dim; j += 16) {
        const bf16 *at = address_of(x, first, begin + j);
        for (int64_t r = 0; r < count; r++) {
            _mm_prefetch((const char *)(at + (ABREAST + r) * x->row), _MM_HINT_T0);
            __m512 v = load_bf16(at + r * x->row);
            scales[r] = _mm512_fmadd_ps(v, v, scales[r]);
        }
    }
    for (int64_t r = 0; r < count; r++)
        scales[r] = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(scales[r]) / (float)head_dim + eps));
    for (int64_t j = 0; j < half; j += 16) {
        const bf16 *left = address_of(x, first, begin + j), *right = address_of(x, first, begin + half + j);
        bf16 *to_left = address_of(out, first, begin + j), *to_right = address_of(out, first, begin + half + j);
        const __m512 wa = load_bf16(weight + j), wb = load_bf16(weight + half + j);
        for (int64_t r = 0; r < count; r++) {
            __m512 a = _mm512_mul_ps(_mm512_mul_ps(load_bf16(left + r * x->row), scales[r]), wa);
            __m512 b = _mm512_mul_ps(_mm512_mul_ps(load_bf16(right + r * x->row), scales[r]), wb);
            __m512 c = load_bf16(o->cosines + (first + r) * half + j), s = load_bf16(o->sines + (first + r) * half + j);
            store_bf16(to_left + r * out->row, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            store_bf16(to_right + r * out->row, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
    }
}

TARGET void rerankd_norm_rope(int threads, const norm_rope *o)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < o->rows; i += ABREAST)
        for (int64_t h = 0; h < o->heads; h++)
            if (o->rows - i >= ABREAST)
                norm_rope_head(i, ABREAST, h * o->head_dim, o);
            else
                norm_rope_head(i, o->rows - i, h * o->head_dim, o);
}

/* Rows that a loop of LayerNorm interleaves. */
enum { NORMED = 4 };

/* LayerNorm of `count` rows of `out` from `first` on, in place, and in bfloat16 into `rounded`. sums: each row's sum */
INLINE void layer_norm_rows(int64_t first, int64_t count, int64_t width, __m512 *sums, const float *weight, const float *bias,
                            float eps, float *out, const matrix *rounded)
{
    __m512 squares[NORMED];
    for (int64_t r = 0; r < count; r++) {
        sums[r] = _mm512_set1_ps(_mm512_reduce_add_ps(sums[r]) / (float)width);
        squares[r] = _mm512_setzero_ps();
    }
    for (int64_t j = 0; j < width; j += 16)
        for (int64_t r = 0; r < count; r++) {
            __m512 v = _mm512_sub_ps(_mm512_loadu_ps(out + (first + r) * width + j), sums[r]);
            squares[r] = _mm512_fmadd_ps(v, v, squares[r]);
        }
    for (int64_t r = 0; r < count; r++)
        squares[r] = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares[r]) / (float)width + eps));
    for (int64_t j = 0; j < width; j += 16)
        for (int64_t r = 0; r < count; r++) {
            float *to = out + (first + r) * width + j;
            __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(to), sums[r]), squares[r]);
            v = _mm512_fmadd_ps(v, _mm512_loadu_ps(weight + j), _mm512_loadu_ps(bias + j));
            _mm512_storeu_ps(to, v);
            store_bf16(address_of(rounded, first + r, j), v);
        }
}

TARGET void rerankd_add_layer_norm(int threads, const add_layer_norm *o)
{
    const int64_t rows = o->rows, width = o->width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += NORMED) {
        const int64_t count = rows - i < NORMED ? rows - i : NORMED;
        __m512 sums[NORMED];
        for (int64_t r = 0; r < count; r++)
            sums[r] = _mm512_setzero_ps();
        for (int64_t j = 0; j < width; j += 16)
            for (int64_t r = 0; r < count; r++) {
                const int64_t at = (i + r) * width + j;
                __m512 v = _mm512_add_ps(_mm512_loadu_ps(o->x + at), load_bf16(address_of(&o->delta, i + r, j)));
                _mm512_storeu_ps(o->out + at, v);
                sums[r] = _mm512_add_ps(sums[r], v);
            }
        layer_norm_rows(i, count, width, sums, o->weight, o->bias, (float)o->eps, o->out, &o->rounded);
    }
}

INLINE int64_t index_at(const lookup *table, int64_t i)
{
    return table->indices ? table->indices[i] : 0;
}

/* LayerNorm of the sum of three embeddings. Returns 0, or 1, with nothing written, where an index lies outside of its table. */
TARGET int rerankd_embed_layer_norm(int threads, int64_t rows, int64_t width, const lookup *tables, const float *weight,
                                    const float *bias, float eps, float *out, const matrix *rounded)
{
    for (int64_t i = 0; i < rows; i++)
        for (const lookup *table = tables; table < tables + 3; table++)
            if (index_at(table, i) < 0 || index_at(table, i) >= table->count)
                return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += NORMED) {
        const int64_t count = rows - i < NORMED ? rows - i : NORMED;
        __m512 sums[NORMED];
        for (int64_t r = 0; r < count; r++) {
            const bf16 *from[3];
            for (int64_t t = 0; t < 3; t++)
                from[t] = tables[t].values + index_at(tables + t, i + r) * width;
            sums[r] = _mm512_setzero_ps();
            for (int64_t j = 0; j < width; j += 16) {
                __m512 v = _mm512_add_ps(load_bf16(from[0] + j), load_bf16(from[1] + j));
                v = _mm512_add_ps(v, load_bf16(from[2] + j));
                _mm512_storeu_ps(out + (i + r) * width + j, v);
                sums[r] = _mm512_add_ps(sums[r], v);
            }
        }
        layer_norm_rows(i, count, width, sums, weight, bias, eps, out, rounded);
    }
    return 0;
}

TARGET void rerankd_to_blocked(int threads, const to_blocked *o)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t j = 0; j < o->width; j += 32)
            _mm512_storeu_si512(address_of(&o->out, i, j), _mm512_loadu_si512(address_of(&o->x, i, j)));
}

TARGET void rerankd_index_select(int threads, const index_select *o)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < o->count; i++)
        for (int64_t j = 0; j < o->segments; j++)
            memcpy(o->out + i * o->out_row + j * o->out_segment, o->x + o->indices[i] * o->x_row + j * o->x_segment,
                   (size_t)o->segment_bytes);
}

/* bfloat16 values as 16-bit integers of the same order. */
INLINE __m512i ordered(__m512i x)
{
    return _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff)));
}

/* The inverse of `ordered`. */
INLINE float value_of(int ordered)
{
    const uint32_t bits = (uint32_t)(ordered ^ (ordered >> 15 & 0x7fff)) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float smallest(__m512i x)
{
    const __m256i half = _mm256_min_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return value_of(_mm512_reduce_min_epi32(_mm512_cvtepi16_epi32(half)));
}

INLINE float largest(__m512i x)
{
    const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return value_of(_mm512_reduce_max_epi32(_mm512_cvtepi16_epi32(half)));
}

/* 32 bfloat16 values times a factor, rounded to integers that 16 bits hold. */
INLINE __m512i rounded(__m512i x, __m512 factor)
{
    __m512i even = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), factor));
    __m512 high = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
    __m512i odd = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}

TARGET void rerankd_quantize(int threads, const quantize *o)
{
    const int64_t rows = o->rows, width = o->width;
    const matrix *x = &o->x;
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ABREAST) {
        const int64_t count = rows - i < ABREAST ? rows - i : ABREAST;
        const bf16 *row[ABREAST];
        __m512i low[ABREAST], high[ABREAST];
        for (int r = 0; r < ABREAST; r++) {
            row[r] = address_of(x, r < count ? i + r : i, 0);
            low[r] = high[r] = _mm512_setzero_si512();
        }
        for (int64_t j = 0; j < width / 32; j++)
            for (int r = 0; r < ABREAST; r++) {
                const bf16 *at = row[r] + j * x->columns;
                _mm_prefetch((const char *)(at + ABREAST * x->row), _MM_HINT_T0);
                __m512i v = ordered(_mm512_loadu_si512(at));
                low[r] = _mm512_min_epi16(low[r], v);
                high[r] = _mm512_max_epi16(high[r], v);
            }
        for (int64_t r = 0; r < count; r++) {
            const float least = smallest(low[r]), range = (largest(high[r]) - least) / 255.0f;
            const float step = range < FLT_MIN * 256 ? FLT_MIN * 256 : range; /* the comparison keeps NaN */
            const float zero = rintf(-least / step);
            o->steps[i + r] = step;
            o->zeros[i + r] = zero;
            const __m512 factor = _mm512_set1_ps(1.0f / step);
            const __m512i shift = _mm512_set1_epi16((short)lrintf(zero));
            uint8_t *to = o->codes + (i + r) * TILE_BYTES;
            for (int64_t j = 0; j < width / 64; j++) {
                const bf16 *from = row[r] + 2 * j * x->columns;
                __m512i a = _mm512_add_epi16(rounded(_mm512_loadu_si512(from), factor), shift);
                __m512i b = _mm512_add_epi16(rounded(_mm512_loadu_si512(from + x->columns), factor), shift);
                _mm512_storeu_si512(to + j * o->block_stride, _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a, b)));
            }
        }
    }
}
#endif

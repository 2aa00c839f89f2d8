/* Shared-prefix (cascade) attention of packed documents, over the layout of layout.py. */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"
#include "panels.h"
#include "tiles.h"
#include "vectors.h"

#include <float.h>
#include <stdlib.h>

/* Packed keys and values of `count` rows of one head. */
typedef struct { int64_t count; bf16 *keys, *values; } side;

/* A thread's scratch memory. logits and weights: of each query for the shared keys, then for its own, each side padded to a
 * multiple of 32 (logits of the vector unit: of 16). The vector unit's queries and weights have the blocked layout, of
 * VECTOR_ROWS rows. */
typedef struct { bf16 *queries, *weights; float *logits, *sums; } scratch;

/* Query rows of one pass: two tiles, so that keys and values are read half as often; one tile where there are few keys, which
 * measures faster. */
enum { QUERIES = 32, FEW_KEYS = 192 };

/* Pack values [n, head_dim] as the right operand of p v. The GEMM sums over keys, padded to a multiple of 32. */
TARGET static void pack_values(const matrix *values, int64_t first, int64_t column, int64_t n, int64_t head_dim, bf16 *out)
{
    const int64_t depth = padded(n);
    uint16_t order[32];
    for (int i = 0; i < 16; i++) {
        order[2 * i] = (uint16_t)i;
        order[2 * i + 1] = (uint16_t)(i + 32);
    }
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < depth; i += 2)
        for (int64_t j = 0; j < head_dim; j += 32) {
            const bf16 *from = address_of(values, first + i, column + j);
            __m512i even = i < n ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            __m512i odd = i + 1 < n ? _mm512_loadu_si512(from + values->row) : _mm512_setzero_si512();
            _mm512_storeu_si512(out + j * depth + 16 * i, _mm512_permutex2var_epi16(even, low, odd));
            _mm512_storeu_si512(out + (j + 16) * depth + 16 * i, _mm512_permutex2var_epi16(even, high, odd));
        }
}

TARGET static void pack(side *to, const matrix *keys, const matrix *values, int64_t first, int64_t stop, int64_t column,
                        int64_t head_dim)
{
    to->count = stop - first;
    pack_panels(keys, first, column, to->count, head_dim, to->keys);
    pack_values(values, first, column, to->count, head_dim, to->values);
}

/* ---- by tiles ------------------------------------------------------------------------------------------------------ */

/* The logits of 16 or 32 (m) queries for n packed keys (a multiple of 32), summed over head_dim: c [m, n].
 *
 * A panel holds 16 keys as pairs of adjacent values of head_dim: a tile loads 16 such pairs as they are.
 */
INLINE void logits_of(int64_t m, int64_t n, int64_t head_dim, const matrix *q, const bf16 *keys, float *c, int64_t c_stride)
{
    const size_t q_bytes = 2 * q->row, c_bytes = 4 * c_stride;
    __asm__ volatile("" ::: "memory"); /* The compiler does not see that tiles read memory: all stores come before. */
    for (int64_t j = 0; j < n; j += 16) {
        const bf16 *panel = keys + j * head_dim;
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
INLINE void add_values(int64_t m, int64_t k, const bf16 *weights, int64_t stride, const bf16 *values, int64_t depth)
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
    memset(s->weights + rows * width, 0, (size_t)(height - rows) * width * sizeof(bf16));
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

/* ---- by vectors ---------------------------------------------------------------------------------------------------- */

/* sums [count, columns] of VECTOR_ROWS rows in the blocked layout by `columns` (a multiple of 16) packed outputs, whose panels
 * lie `panel` values apart; added to the sums before, if `accumulate`. depth: the number of values, an even one, that are
 * summed. */
TARGET static void multiply_blocked(const bf16 *rows, int64_t count, const bf16 *panels, int64_t panel, int64_t depth,
                                    int64_t columns, float *sums, int64_t stride, int accumulate)
{
    microkernel f = {
        .rows = (const uint8_t *)rows,
        .block_stride = VECTOR_ROWS * TILE_BYTES,
        .depth = depth / 2,
        .stride = stride,
        .accumulate = accumulate,
    };
    for (int64_t j = 0; j < columns; j += 32, panels += 2 * panel) {
        f.left = (const uint8_t *)panels;
        f.right = columns - j > 16 ? (const uint8_t *)(panels + panel) : NULL;
        f.sums = sums + j;
        rerankd_multiply_bf16(&f, count);
    }
}

INLINE void logits_by_vectors(const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                              const matrix *queries, int64_t before, int64_t behind)
{
    const int64_t width = before + behind, panel = 16 * head_dim;
    for (int64_t j = 0; j < head_dim; j += 32)
        for (int64_t i = 0; i < rows; i++)
            _mm512_storeu_si512(s->queries + j * VECTOR_ROWS + i * 32, _mm512_loadu_si512(address_of(queries, i, j)));
    multiply_blocked(s->queries, rows, shared->keys, panel, head_dim, before, s->logits, width, 0);
    multiply_blocked(s->queries, rows, own->keys, panel, head_dim, behind, s->logits + before, width, 0);
}

INLINE void values_by_vectors(const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                              int64_t visible)
{
    const int64_t before = padded(shared->count);
    const bf16 *of_own = s->weights + before * VECTOR_ROWS;
    multiply_blocked(s->weights, rows, shared->values, 16 * before, up_to(shared->count, 2), head_dim, s->sums, head_dim, 0);
    multiply_blocked(of_own, rows, own->values, 16 * padded(own->count), up_to(visible, 2), head_dim, s->sums, head_dim, 1);
}

/* ---- by either ----------------------------------------------------------------------------------------------------- */

/* Of the 16 lanes from `j` on, those below `end`. */
INLINE __mmask16 lanes(int64_t j, int64_t end)
{
    return end - j >= 16 ? 0xffff : end <= j ? 0 : (__mmask16)((1u << (end - j)) - 1);
}

INLINE __m512 max_over(const float *x, int64_t end, __m512 largest)
{
    for (int64_t j = 0; j < end; j += 16)
        largest = _mm512_mask_max_ps(largest, lanes(j, end), largest, _mm512_loadu_ps(x + j));
    return largest;
}

/* out = 2^(scale * x - shift) up to `end`, 0 from there to `width`, a multiple of 32. Returns `sum` plus these values. columns:
 * values from 32 columns of `out` to the next 32 */
INLINE __m512 exp2_over(const float *x, int64_t end, int64_t width, __m512 scale, __m512 shift, __m512 sum, bf16 *out,
                        int64_t columns)
{
    int64_t j = 0;
    for (; j < end; j += 32, out += columns) {
        __m512 a = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(x + j), scale, shift));
        __m512 b = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(x + j + 16), scale, shift));
        if (j + 32 > end) {
            a = _mm512_maskz_mov_ps(lanes(j, end), a);
            b = _mm512_maskz_mov_ps(lanes(j + 16, end), b);
        }
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    for (; j < width; j += 32, out += columns)
        _mm512_storeu_si512(out, _mm512_setzero_si512());
    return sum;
}

/* The keys and values of one head that are packed next. */
typedef struct { matrix keys, values; int64_t rows; } coming;

/* Attention of up to QUERIES query rows of one head, or VECTOR_ROWS without tiles. The last row sees `visible` of its own keys;
 * in a causal block each row before it sees one key less. */
INLINE void attend(int tiles, const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                   const matrix *queries, int64_t visible, int causal, float scale, const matrix *out, const coming *next)
{
    const int64_t run = tiles ? 32 : 16;
    const int64_t before = up_to(shared->count, run), behind = up_to(visible, run), width = before + behind;
    const matrix weights = { s->weights, tiles ? width : 32, tiles ? 32 : VECTOR_ROWS * 32 };
    __m512 totals[QUERIES];
    if (tiles)
        logits_by_tiles(s, shared, own, rows, head_dim, queries, before, behind);
    else
        logits_by_vectors(s, shared, own, rows, head_dim, queries, before, behind);
    /* All maxima first, then all weights: within a row each step waits for the one before. */
    __m512 shifts[QUERIES];
    const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t end = causal ? visible - (rows - 1 - i) : visible;
        const float *row = s->logits + i * width;
        __m512 largest = max_over(row, shared->count, _mm512_set1_ps(-FLT_MAX));
        shifts[i] = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(max_over(row + before, end, largest))), factor);
    }
    for (int64_t i = 0; i < rows; i++) {
        const int64_t end = causal ? visible - (rows - 1 - i) : visible;
        const float *row = s->logits + i * width;
        if (i < next->rows)
            for (int64_t j = 0; j < head_dim; j += 32) {
                _mm_prefetch((const char *)address_of(&next->keys, i, j), _MM_HINT_T1);
                _mm_prefetch((const char *)address_of(&next->values, i, j), _MM_HINT_T1);
            }
        bf16 *to = address_of(&weights, i, 0), *own_weights = address_of(&weights, i, padded(before));
        __m512 sum = exp2_over(row, shared->count, before, factor, shifts[i], _mm512_setzero_ps(), to, weights.columns);
        totals[i] = exp2_over(row + before, end, behind, factor, shifts[i], sum, own_weights, weights.columns);
    }
    if (tiles)
        values_by_tiles(s, shared, own, rows, head_dim, before, behind);
    else
        values_by_vectors(s, shared, own, rows, head_dim, visible);
    for (int64_t i = 0; i < rows; i++) {
        __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(totals[i]));
        for (int64_t j = 0; j < head_dim; j += 16)
            store_bf16(address_of(out, i, j), _mm512_mul_ps(_mm512_loadu_ps(s->sums + i * head_dim + j), inverse));
    }
}

/* One function for each unit, which is called and not inlined. */
TARGET static __attribute__((noinline)) void attend_by_tiles(const scratch *s, const side *shared, const side *own,
                                                             int64_t rows, int64_t head_dim, const matrix *queries,
                                                             int64_t visible, int causal, float scale, const matrix *out,
                                                             const coming *next)
{
    attend(1, s, shared, own, rows, head_dim, queries, visible, causal, scale, out, next);
}

TARGET static __attribute__((noinline)) void attend_by_vectors(const scratch *s, const side *shared, const side *own,
                                                               int64_t rows, int64_t head_dim, const matrix *queries,
                                                               int64_t visible, int causal, float scale, const matrix *out,
                                                               const coming *next)
{
    attend(0, s, shared, own, rows, head_dim, queries, visible, causal, scale, out, next);
}

static bf16 *take(char **from, int64_t bytes)
{
    bf16 *taken = (bf16 *)*from;
    *from += (bytes + 63) / 64 * 64;
    return taken;
}

TARGET int rerankd_attention(int threads, int tiles, const attention *o)
{
    const int64_t *runs = o->runs, run_count = o->run_count;
    const block *blocks = o->blocks;
    const int64_t heads = o->heads, kv_heads = o->kv_heads, head_dim = o->head_dim;
    const matrix *q = &o->q, *k = &o->k, *v = &o->v, *out = &o->out;
    const int causal = o->causal != 0;
    const float scale = (float)o->scale;
    const int64_t repeat = heads / kv_heads;
    int64_t most_shared = 0, most_own = 0;
    for (int64_t i = 0; i < runs[run_count]; i++) {
        int64_t shared = padded(blocks[i].shared_stop - blocks[i].shared), own = padded(blocks[i].own_stop - blocks[i].own);
        most_shared = shared > most_shared ? shared : most_shared;
        most_own = own > most_own ? own : most_own;
    }
    const int64_t packed = 2 * (most_shared + most_own) * head_dim * sizeof(bf16);
    const int64_t work = QUERIES * ((most_shared + most_own + head_dim) * (sizeof(bf16) + sizeof(float)));
    const size_t each = (size_t)((packed + work) / 64 + 16) * 64;
    char *memory = aligned_alloc(64, each * threads);
    if (!memory)
        return 1;
    range ranges[threads];
    for (int64_t t = 0; t < threads; t++) {
        ranges[t].next = run_count * kv_heads * t / threads;
        ranges[t].end = run_count * kv_heads * (t + 1) / threads;
    }
#pragma omp parallel num_threads(threads)
    {
        char *own_memory = memory + each * omp_get_thread_num();
        side shared, own;
        scratch s;
        shared.keys = take(&own_memory, most_shared * head_dim * sizeof(bf16));
        shared.values = take(&own_memory, most_shared * head_dim * sizeof(bf16));
        own.keys = take(&own_memory, most_own * head_dim * sizeof(bf16));
        own.values = take(&own_memory, most_own * head_dim * sizeof(bf16));
        s.queries = take(&own_memory, QUERIES * head_dim * sizeof(bf16));
        s.weights = take(&own_memory, QUERIES * (most_shared + most_own) * sizeof(bf16));
        s.sums = (float *)take(&own_memory, QUERIES * head_dim * sizeof(float));
        s.logits = (float *)take(&own_memory, QUERIES * (most_shared + most_own) * sizeof(float));
        if (tiles)
            begin_tiles();
        for (int64_t piece; (piece = take_piece(ranges, omp_get_thread_num(), threads)) >= 0;) {
            const int64_t run = piece / kv_heads, kv = piece % kv_heads;
            const block *first = blocks + runs[run];
            pack(&shared, k, v, first->shared, first->shared_stop, kv * head_dim, head_dim);
            for (const block *b = first; b < blocks + runs[run + 1]; b++) {
                const int64_t count = b->own_stop - b->own, queries = b->query_stop - b->query;
                pack(&own, k, v, b->own, b->own_stop, kv * head_dim, head_dim);
                const int few = padded(shared.count) + padded(count) <= FEW_KEYS;
                const int64_t most = !tiles ? VECTOR_ROWS : few ? QUERIES / 2 : QUERIES;
                const int is_last = b + 1 == blocks + runs[run + 1]; /* the next piece is another head, or another run */
                const int64_t next_kv = is_last ? (kv + 1) % kv_heads : kv;
                const block *after = is_last && next_kv ? first : b + 1;
                for (int64_t h = kv * repeat; h < (kv + 1) * repeat; h++)
                    for (int64_t i = 0; i < queries; i += most) {
                        const int64_t rows = queries - i < most ? queries - i : most;
                        const int64_t visible = causal ? count - (queries - i - rows) : count;
                        const matrix asking = shifted(q, b->query + i, h * head_dim);
                        const matrix to = shifted(out, b->query + i, h * head_dim);
                        coming next = { .rows = 0 };
                        if (h == kv * repeat && after < blocks + runs[run_count])
                            next = (coming){ shifted(k, after->own + i, next_kv * head_dim),
                                             shifted(v, after->own + i, next_kv * head_dim),
                                             after->own_stop - after->own - i };
                        (tiles ? attend_by_tiles : attend_by_vectors)(&s, &shared, &own, rows, head_dim, &asking, visible,
                                                                      causal, scale, &to, &next);
                    }
            }
        }
        if (tiles)
            end_tiles();
    }
    free(memory);
    return 0;
}
#endif

/* Shared-prefix (cascade) attention of packed documents, over the layout of layout.py, by the vector unit. */
#ifndef RERANKD_ATTENTION_H
#define RERANKD_ATTENTION_H

#include "microkernel.h"
#include "panels.h"

/* Packed keys and values of `count` rows of one head. Panels of values are `panel` values apart, in memory for `packed` unless
 * the rows lie as panels do. */
typedef struct { int64_t count; value *keys, *packed; const value *values; int64_t panel; } side;

/* A thread's scratch memory. logits and weights: of each query for the shared keys, then for its own, each side padded to a
 * multiple of the values in 64 bytes (logits of the vector unit: of 16). The vector unit's queries and weights have the blocked
 * layout, of MICRO_ROWS rows. */
typedef struct { value *queries, *weights; float *logits, *sums; } scratch;

/* Query rows of one pass: two tiles, so that keys and values are read half as often; one tile where there are few keys, which
 * measures faster. */
enum { QUERIES = 32, FEW_KEYS = 192 };

/* The keys and values of one head that are packed next. */
typedef struct { matrix keys, values; int64_t rows; } coming;

/* Attention of some query rows of one head. The last row sees `visible` of its own keys; in a causal block each row before it
 * sees one key less. */
typedef struct {
    const scratch *s;
    const side *shared, *own;
    int64_t rows, head_dim;
    const matrix *queries;
    int64_t visible;
    int causal;
    float scale;
    const matrix *out;
    const coming *next;
} queries_of_head;

#if VALUES_ARE_FLOAT32
/* Values [n, head_dim] as the right operand of p v, whose panels have a line for each key: as column blocks have. */
TARGET static void pack_values(side *to, const matrix *values, int64_t first, int64_t column, int64_t head_dim)
{
    to->values = address_of(values, first, column);
    to->panel = values->columns;
    if (values->row == VALUES)
        return;
    for (int64_t j = 0; j < head_dim; j += VALUES)
        for (int64_t i = 0; i < to->count; i++)
            memcpy(to->packed + j * to->count + i * VALUES, address_of(values, first + i, column + j), TILE_BYTES);
    to->values = to->packed;
    to->panel = VALUES * to->count;
}
#elif defined(__aarch64__)
/* As below. */
TARGET static void pack_values(side *to, const matrix *values, int64_t first, int64_t column, int64_t head_dim)
{
    static const value NOTHING[VALUES] = { 0 };
    const int64_t n = to->count, depth = padded(n);
    value *const out = to->packed;
    for (int64_t i = 0; i < depth; i += 2)
        for (int64_t j = 0; j < head_dim; j += 8) {
            const uint16x8_t even = vld1q_u16(i < n ? address_of(values, first + i, column + j) : NOTHING);
            const uint16x8_t odd = vld1q_u16(i + 1 < n ? address_of(values, first + i + 1, column + j) : NOTHING);
            value *const at = out + j / 16 * 16 * depth + 16 * i + j % 16 * 2;
            vst1q_u16(at, vzip1q_u16(even, odd));
            vst1q_u16(at + 8, vzip2q_u16(even, odd));
        }
    to->values = out;
    to->panel = 16 * depth;
}
#else
/* Pack values [n, head_dim] as the right operand of p v. The GEMM sums over keys, padded to a multiple of 32. */
TARGET static void pack_values(side *to, const matrix *values, int64_t first, int64_t column, int64_t head_dim)
{
    const int64_t n = to->count, depth = padded(n);
    value *const out = to->packed;
    uint16_t order[32];
    for (int i = 0; i < 16; i++) {
        order[2 * i] = (uint16_t)i;
        order[2 * i + 1] = (uint16_t)(i + 32);
    }
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < depth; i += 2)
        for (int64_t j = 0; j < head_dim; j += 32) {
            const value *from = address_of(values, first + i, column + j);
            __m512i even = i < n ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            __m512i odd = i + 1 < n ? _mm512_loadu_si512(from + values->row) : _mm512_setzero_si512();
            _mm512_storeu_si512(out + j * depth + 16 * i, _mm512_permutex2var_epi16(even, low, odd));
            _mm512_storeu_si512(out + (j + 16) * depth + 16 * i, _mm512_permutex2var_epi16(even, high, odd));
        }
    to->values = out;
    to->panel = 16 * depth;
}
#endif

TARGET static void pack(side *to, const matrix *keys, const matrix *values, int64_t first, int64_t stop, int64_t column,
                        int64_t head_dim)
{
    to->count = stop - first;
    pack_panels(keys, first, column, to->count, head_dim, to->keys);
    pack_values(to, values, first, column, head_dim);
}

/* sums [count, columns] of rows in the blocked layout, whose blocks lie `block_stride` bytes apart, by `columns` (a multiple of
 * 16) packed outputs, whose panels lie `panel` values apart; added to the sums before, if `accumulate`. depth: the number of
 * values that are summed, a multiple of those that a line has of a row */
INLINE void multiply_blocked(const value *rows, int64_t block_stride, int64_t count, const value *panels, int64_t panel,
                             int64_t depth, int64_t columns, float *sums, int64_t stride, int accumulate)
{
    microkernel f = {
        .rows = (const uint8_t *)rows,
        .block_stride = block_stride,
        .depth = depth / PER_LINE,
        .stride = stride,
        .accumulate = accumulate,
    };
    for (int64_t j = 0; j < columns; j += 32, panels += 2 * panel) {
        f.left = (const uint8_t *)panels;
        f.right = columns - j > 16 ? (const uint8_t *)(panels + panel) : NULL;
        f.sums = sums + j;
        multiply_values(&f, count);
    }
}

/* logits [rows, shared and own keys] of up to MICRO_ROWS rows of one head. */
INLINE void logits_by_vectors(const queries_of_head *a, int64_t before, int64_t behind)
{
    const scratch *s = a->s;
    const int64_t width = before + behind, head_dim = a->head_dim, panel = 16 * head_dim;
    const value *rows = a->queries->at;
    int64_t stride = a->queries->columns * (int64_t)sizeof(value);
    if (a->queries->row != VALUES) {
        for (int64_t j = 0; j < head_dim; j += VALUES)
            for (int64_t i = 0; i < a->rows; i++)
                memcpy(s->queries + j * MICRO_ROWS + i * VALUES, address_of(a->queries, i, j), TILE_BYTES);
        rows = s->queries;
        stride = MICRO_ROWS * TILE_BYTES;
    }
    multiply_blocked(rows, stride, a->rows, a->shared->keys, panel, head_dim, before, s->logits, width, 0);
    multiply_blocked(rows, stride, a->rows, a->own->keys, panel, head_dim, behind, s->logits + before, width, 0);
}

/* sums [rows, head_dim] of values by their weights. */
INLINE void values_by_vectors(const queries_of_head *a)
{
    const scratch *s = a->s;
    const side *shared = a->shared, *own = a->own;
    const int64_t stride = MICRO_ROWS * TILE_BYTES;
    multiply_blocked(s->weights, stride, a->rows, shared->values, shared->panel, up_to(shared->count, PER_LINE), a->head_dim,
                     s->sums, a->head_dim, 0);
    multiply_blocked(s->weights + padded(shared->count) * MICRO_ROWS, stride, a->rows, own->values, own->panel,
                     up_to(a->visible, PER_LINE), a->head_dim, s->sums, a->head_dim, 1);
}

/* The largest of x up to `end`, in some lane. */
INLINE vector max_over(const float *x, int64_t end, vector largest)
{
    int64_t j = 0;
    for (; j + LANES <= end; j += LANES)
        largest = larger(largest, load(x + j));
    return j < end ? larger(largest, lanes_before(j, end, load(x + j), largest)) : largest;
}

/* out = 2^(scale * x - shift) up to `end`, 0 from there to `width`, padded to whole column blocks. Returns `sum` plus these
 * values. columns: values from a column block of `out` to the next */
INLINE vector exp2_over(const float *x, int64_t end, int64_t width, vector scale, vector shift, vector sum, value *out,
                        int64_t columns)
{
    int64_t j = 0;
    for (; j < end; j += VALUES, out += columns) {
        vector y[BLOCK_PARTS];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK_PARTS; i++)
            y[i] = exp2_of(multiply_subtract(load(x + j + i * LANES), scale, shift));
        if (j + VALUES > end)
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK_PARTS; i++)
                y[i] = lanes_before(j + i * LANES, end, y[i], all(0.0f));
        vector part = y[0];
#pragma GCC unroll 4
        for (int i = 1; i < BLOCK_PARTS; i++)
            part = add(part, y[i]);
        sum = add(sum, part);
        store_block(out, y);
    }
    for (; j < width; j += VALUES, out += columns)
        memset(out, 0, TILE_BYTES);
    return sum;
}

/* Softmax of logits into weights, scaled; the sums of each row's weights. All maxima first, then all weights: within a row each
 * step waits for the one before. */
INLINE void weights_of(const queries_of_head *a, int64_t before, int64_t behind, const matrix *weights, vector *totals)
{
    const int64_t width = before + behind;
    const coming *next = a->next;
    vector shifts[QUERIES];
    const vector factor = all(a->scale * LOG2_E);
    for (int64_t i = 0; i < a->rows; i++) {
        const int64_t end = a->causal ? a->visible - (a->rows - 1 - i) : a->visible;
        const float *row = a->s->logits + i * width;
        vector largest = max_over(row, a->shared->count, all(-FLT_MAX));
        shifts[i] = multiply(all(largest_of(max_over(row + before, end, largest))), factor);
    }
    for (int64_t i = 0; i < a->rows; i++) {
        const int64_t end = a->causal ? a->visible - (a->rows - 1 - i) : a->visible;
        const float *row = a->s->logits + i * width;
        if (i < next->rows)
            for (int64_t j = 0; j < a->head_dim; j += VALUES) {
                prefetch_far(address_of(&next->keys, i, j));
                prefetch_far(address_of(&next->values, i, j));
            }
        value *to = address_of(weights, i, 0), *own_weights = address_of(weights, i, padded(before));
        vector sum = exp2_over(row, a->shared->count, before, factor, shifts[i], all(0.0f), to, weights->columns);
        totals[i] = exp2_over(row + before, end, behind, factor, shifts[i], sum, own_weights, weights->columns);
    }
}

/* Sums of values over sums of weights, which are the output. */
INLINE void divide_sums(const queries_of_head *a, const vector *totals)
{
    for (int64_t i = 0; i < a->rows; i++) {
        vector inverse = all(1.0f / sum_of(totals[i]));
        for (int64_t j = 0; j < a->head_dim; j += LANES)
            store_values(address_of(a->out, i, j), multiply(load(a->s->sums + i * a->head_dim + j), inverse));
    }
}

/* Attention of up to MICRO_ROWS query rows. */
TARGET static void attend_by_vectors(const queries_of_head *a)
{
    const int64_t before = up_to(a->shared->count, 16), behind = up_to(a->visible, 16);
    const matrix weights = { a->s->weights, VALUES, MICRO_ROWS * VALUES };
    vector totals[QUERIES];
    logits_by_vectors(a, before, behind);
    weights_of(a, before, behind, &weights, totals);
    values_by_vectors(a);
    divide_sums(a, totals);
}

static char *take(char **from, int64_t bytes)
{
    char *taken = *from;
    *from += (bytes + 63) / 64 * 64;
    return taken;
}

/* The most keys of a shared prefix and of a document by itself. */
TARGET static void most_keys(const attention *o, int64_t *shared, int64_t *own)
{
    *shared = *own = 0;
    for (const block *b = o->blocks; b < o->blocks + o->runs[o->run_count]; b++) {
        const int64_t of_shared = padded(b->shared_stop - b->shared), of_own = padded(b->own_stop - b->own);
        *shared = of_shared > *shared ? of_shared : *shared;
        *own = of_own > *own ? of_own : *own;
    }
}

TARGET static int64_t attention_bytes(const attention *o)
{
    int64_t shared, own;
    most_keys(o, &shared, &own);
    const int64_t packed = 2 * (shared + own) * o->head_dim * sizeof(value);
    const int64_t work = QUERIES * ((shared + own + o->head_dim) * (sizeof(value) + sizeof(float)));
    return ((packed + work) / 64 + 16) * 64;
}

TARGET static void share_attention(team *t, const void *o)
{
    share_pieces(t, ((const attention *)o)->run_count * ((const attention *)o)->kv_heads);
}

/* attend: computes up to `few` query rows of few keys, or `many` */
INLINE void attention_by(const team *t, int64_t thread, const attention *o, void (*attend)(const queries_of_head *),
                         int64_t few, int64_t many)
{
    const int64_t *runs = o->runs, run_count = o->run_count, kv_heads = o->kv_heads, head_dim = o->head_dim;
    const block *blocks = o->blocks;
    const matrix *q = &o->q, *k = &o->k, *v = &o->v;
    const int causal = o->causal != 0;
    const int64_t repeat = o->heads / kv_heads;
    int64_t most_shared, most_own;
    most_keys(o, &most_shared, &most_own);
    char *memory = t->scratch + thread * t->scratch_bytes;
    side shared, own;
    scratch s;
    shared.keys = (value *)take(&memory, most_shared * head_dim * sizeof(value));
    shared.packed = (value *)take(&memory, most_shared * head_dim * sizeof(value));
    own.keys = (value *)take(&memory, most_own * head_dim * sizeof(value));
    own.packed = (value *)take(&memory, most_own * head_dim * sizeof(value));
    s.queries = (value *)take(&memory, QUERIES * head_dim * sizeof(value));
    s.weights = (value *)take(&memory, QUERIES * (most_shared + most_own) * sizeof(value));
    s.sums = (float *)take(&memory, QUERIES * head_dim * sizeof(float));
    s.logits = (float *)take(&memory, QUERIES * (most_shared + most_own) * sizeof(float));
    for (int64_t piece; (piece = take_piece(t, thread)) >= 0;) {
        const int64_t run = piece / kv_heads, kv = piece % kv_heads;
        const block *first = blocks + runs[run];
        pack(&shared, k, v, first->shared, first->shared_stop, kv * head_dim, head_dim);
        for (const block *b = first; b < blocks + runs[run + 1]; b++) {
            const int64_t count = b->own_stop - b->own, queries = b->query_stop - b->query;
            pack(&own, k, v, b->own, b->own_stop, kv * head_dim, head_dim);
            const int64_t most = padded(shared.count) + padded(count) <= FEW_KEYS ? few : many;
            const int is_last = b + 1 == blocks + runs[run + 1]; /* the next piece is another head, or another run */
            const int64_t next_kv = is_last ? (kv + 1) % kv_heads : kv;
            const block *after = is_last && next_kv ? first : b + 1;
            for (int64_t h = kv * repeat; h < (kv + 1) * repeat; h++)
                for (int64_t i = 0; i < queries; i += most) {
                    const int64_t rows = queries - i < most ? queries - i : most;
                    const int64_t visible = causal ? count - (queries - i - rows) : count;
                    const matrix asking = shifted(q, b->query + i, h * head_dim);
                    const matrix to = shifted(&o->out, b->query + i, h * head_dim);
                    coming next = { .rows = 0 };
                    if (h == kv * repeat && after < blocks + runs[run_count])
                        next = (coming){ shifted(k, after->own + i, next_kv * head_dim),
                                         shifted(v, after->own + i, next_kv * head_dim), after->own_stop - after->own - i };
                    const queries_of_head a = { &s,     &shared,          &own, rows, head_dim, &asking, visible,
                                                causal, (float)o->scale, &to,  &next };
                    attend(&a);
                }
        }
    }
}

TARGET static void work_attention(const team *t, int64_t thread, const void *o)
{
    attention_by(t, thread, o, attend_by_vectors, MICRO_ROWS, MICRO_ROWS);
}

#endif

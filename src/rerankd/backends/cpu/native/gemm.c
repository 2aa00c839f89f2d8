/* GEMMs of rows and a packed weight, with fused epilogues, by AMX tiles or by the vector unit.
 *
 * A GEMM by tiles is bound by loads, not by the tile unit. So a pair of panels of the weight, 32 outputs by a K block of the
 * inputs, stays in the first-level cache, while all rows of a row block are loaded from the second-level cache with streaming
 * loads, which leave the first-level cache alone. Sums over several K blocks wait in memory in between.
 */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"
#include "panels.h"
#include "tiles.h"
#include "vectors.h"

/* Steps of 64 bytes in a K block: two panels take 32 KB of a first-level cache of 48 KB. */
enum { K_BLOCK = 16 };

/* Sums of 32 rows by 32 outputs: their number, the first of each of four tiles, and the bytes of a row. */
enum { WHOLE = 32 * 32, UPPER_LEFT = 0, UPPER_RIGHT = 16, LOWER_LEFT = 512, LOWER_RIGHT = 528, SUMS_BYTES = 32 * 4 };

/* Bytes of rows in a row block. By tiles: a second-level cache of 2 MB evicts the block before slowly. By vectors: most of a
 * second-level cache of 1 MB is left to the weight. */
enum { TILES_BLOCK_BYTES = 3 << 18, VECTORS_BLOCK_BYTES = 3 << 17, MOST_BLOCK_ROWS = 512 };

/* Rows of a thread from which on it is worth reading the whole weight. */
enum { ALONE_ROWS = 128 };

/* Pack a bfloat16 weight [outputs, inputs]. */
TARGET void rerankd_pack_bf16(int64_t outputs, int64_t inputs, const bf16 *weight, bf16 *packed)
{
    const matrix w = { (bf16 *)weight, inputs, 32 };
    pack_panels(&w, 0, 0, outputs, inputs, packed);
}

/* Pack an 8-bit weight [outputs, inputs] into panels of 16 outputs, 4 inputs of each side by side, and sum its rows. */
void rerankd_pack_int8(int64_t outputs, int64_t inputs, const int8_t *weight, int8_t *packed, float *sums)
{
    for (int64_t o = 0; o < outputs; o++) {
        int8_t *panel = packed + o / 16 * 16 * inputs + o % 16 * 4;
        sums[o] = 0;
        for (int64_t i = 0; i < inputs; i++) {
            panel[i / 4 * 64 + i % 4] = weight[o * inputs + i];
            sums[o] += weight[o * inputs + i];
        }
    }
}

/* Results are rounded to bfloat16, so reciprocals of 14 bits are enough. The bound of 100 avoids slow subnormal values. */
INLINE __m512 sigmoid_ps(__m512 x)
{
    __m512 e = exp2_ps(_mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E))));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* max(x, 0) - GELU(x) for |x| from 0 to 4.65, by a quadratic in |x| around each 31st of the range: the coefficients of 1, |x|
 * and x^2, which interpolate at Chebyshev's nodes. Around 0 the constant is 0, so that small values stay small; the last is 0.
 */
static const float BELOW[3][32] = {
    { 0.0f, 8.104536e-05f, 0.001470711f, 0.007230817f, 0.02132012f, 0.04724308f, 0.08676781f, 0.1390842f, 0.2006322f,
      0.2656305f, 0.3271404f, 0.3783698f, 0.4138888f, 0.4304833f, 0.4275011f, 0.4066818f, 0.3715863f, 0.3268084f,
      0.2771627f, 0.2270057f, 0.1797842f, 0.137832f, 0.1023853f, 0.07375057f, 0.0515513f, 0.0349888f, 0.02307123f,
      0.01478682f, 0.009215709f, 0.005587272f, 0.00329639f, 0.0f },
    { 0.5f, 0.4983083f, 0.4863859f, 0.4560226f, 0.4026095f, 0.3259534f, 0.2301827f, 0.1228216f, 0.01328665f,
      -0.0888327f, -0.1753427f, -0.2405732f, -0.2819119f, -0.2997399f, -0.2968875f, -0.277803f, -0.2476444f,
      -0.2114691f, -0.1736371f, -0.1374722f, -0.105164f, -0.07785745f, -0.05585624f, -0.03887167f, -0.02626376f,
      -0.01724068f, -0.01100243f, -0.006829447f, -0.004125147f, -0.002425604f, -0.001388914f, 0.0f },
    { -0.39863f, -0.3897751f, -0.363999f, -0.3238574f, -0.2731499f, -0.2164224f, -0.1583681f, -0.1032606f,
      -0.05450873f, -0.01438716f, 0.01603753f, 0.03680582f, 0.04883557f, 0.05362426f, 0.05294283f, 0.0485689f,
      0.04208931f, 0.03478239f, 0.02757454f, 0.02105508f, 0.01552859f, 0.01108496f, 0.007670854f, 0.00515217f,
      0.003361963f, 0.002132999f, 0.001316622f, 0.0007911081f, 0.0004629229f, 0.0002639035f, 0.0001466178f, 0.0f },
};

/* The value of a table of 32 at the lowest 5 bits of an index. */
INLINE __m512 looked_up(const float *table, __m512i index)
{
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), index, _mm512_loadu_ps(table + 16));
}

/* GELU with an absolute error of at most 1.4e-5. The table needs fewer multiply-adds than one polynomial over the range, and
 * the GEMM itself needs all multiply-adds that the vector unit can give. */
INLINE __m512 gelu_ps(__m512 x)
{
    const __m512 near = _mm512_min_ps(_mm512_set1_ps(4.65f), _mm512_abs_ps(x));
    /* 1.5 * 2^23 rounds the sum to an integer, in the lowest bits. */
    const __m512 index = _mm512_fmadd_ps(near, _mm512_set1_ps(31 / 4.65f), _mm512_set1_ps(12582912.0f));
    const __m512i i = _mm512_castps_si512(index);
    __m512 below = _mm512_fmadd_ps(looked_up(BELOW[2], i), near, looked_up(BELOW[1], i));
    below = _mm512_fmadd_ps(below, near, looked_up(BELOW[0], i));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), below); /* this order of operands keeps NaN */
}

INLINE __m512 gelu_tanh_ps(__m512 x)
{
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(0.044715f), x);
    return _mm512_mul_ps(x, sigmoid_ps(_mm512_mul_ps(cubic, _mm512_set1_ps(1.5957691216f))));
}

/* Sums of up to 32 rows by 32 outputs whose epilogue has yet to run, from row `done` on. */
typedef struct { const float *sums; int64_t row, rows, left, right, done; } pending_sums;

/* Values of 16 outputs that all rows share. */
typedef struct { __m512 bias, scales, sums; } outputs;

INLINE outputs outputs_at(const gemm *p, int64_t column, int quantized)
{
    outputs of;
    of.bias = p->bias ? _mm512_loadu_ps(p->bias + column) : _mm512_setzero_ps();
    of.scales = quantized ? _mm512_loadu_ps(p->scales + column) : of.bias;
    of.sums = quantized ? _mm512_loadu_ps(p->sums + column) : of.bias;
    return of;
}

/* 16 outputs of a row from their sums, which are integers in 8 bits. */
INLINE __m512 output(const gemm *p, const float *sums, int64_t row, const outputs *of, int quantized)
{
    const __m512 y = _mm512_loadu_ps(sums);
    if (!quantized)
        return _mm512_add_ps(y, of->bias);
    const __m512 step = _mm512_set1_ps(p->row_steps[row]), zero = _mm512_set1_ps(p->row_zeros[row]);
    const __m512 whole = _mm512_fnmadd_ps(of->sums, zero, _mm512_cvtepi32_ps(_mm512_castps_si512(y)));
    return _mm512_fmadd_ps(whole, _mm512_mul_ps(of->scales, step), of->bias);
}

INLINE __m512 activate(__m512 y, int epilogue)
{
    if (epilogue == EPILOGUE_GELU)
        return gelu_ps(y);
    if (epilogue == EPILOGUE_GELU_TANH)
        return gelu_tanh_ps(y);
    return y;
}

/* Compute the epilogue of up to `count` rows of sums and write the outputs. */
INLINE void epilogue_of_rows(const gemm *p, pending_sums *u, int64_t count, int quantized, int epilogue)
{
    const int64_t stop = u->done + count < u->rows ? u->done + count : u->rows;
    const outputs of_left = outputs_at(p, u->left, quantized), of_right = outputs_at(p, u->right, quantized);
    bf16 *const first = address_of(&p->out, u->row, u->left);
    for (int64_t at = u->done; at < stop; at++) {
        const int64_t row = u->row + at;
        bf16 *out = first + at * p->out.row;
        __m512 left = output(p, u->sums + 32 * at, row, &of_left, quantized);
        __m512 right = output(p, u->sums + 32 * at + 16, row, &of_right, quantized);
        if (epilogue == EPILOGUE_GATED) {
            store_bf16(out, _mm512_mul_ps(_mm512_mul_ps(left, sigmoid_ps(left)), right));
            continue;
        }
        if (epilogue == EPILOGUE_RESIDUAL) {
            const bf16 *residual = address_of(&p->residual, row, u->left);
            left = _mm512_add_ps(left, load_bf16(residual));
            right = _mm512_add_ps(right, load_bf16(residual + 16));
        }
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(activate(right, epilogue), activate(left, epilogue)));
    }
    u->done = stop;
}

/* One function for each epilogue, which is called and not inlined, so that the loop of tiles keeps its registers. */
typedef void epilogue_function(const gemm *, pending_sums *, int64_t);
#define EPILOGUE_FUNCTION(name, quantized, epilogue)                                                                  \
    TARGET static __attribute__((noinline)) void name(const gemm *p, pending_sums *u, int64_t count)                  \
    {                                                                                                                 \
        epilogue_of_rows(p, u, count, quantized, epilogue);                                                           \
    }
EPILOGUE_FUNCTION(epilogue_bf16, 0, EPILOGUE_NONE)
EPILOGUE_FUNCTION(epilogue_bf16_gelu, 0, EPILOGUE_GELU)
EPILOGUE_FUNCTION(epilogue_bf16_gelu_tanh, 0, EPILOGUE_GELU_TANH)
EPILOGUE_FUNCTION(epilogue_bf16_gated, 0, EPILOGUE_GATED)
EPILOGUE_FUNCTION(epilogue_bf16_residual, 0, EPILOGUE_RESIDUAL)
EPILOGUE_FUNCTION(epilogue_int8, 1, EPILOGUE_NONE)
EPILOGUE_FUNCTION(epilogue_int8_gelu, 1, EPILOGUE_GELU)
EPILOGUE_FUNCTION(epilogue_int8_gelu_tanh, 1, EPILOGUE_GELU_TANH)
EPILOGUE_FUNCTION(epilogue_int8_gated, 1, EPILOGUE_GATED)
EPILOGUE_FUNCTION(epilogue_int8_residual, 1, EPILOGUE_RESIDUAL)
static epilogue_function *const EPILOGUES[2][5] = {
    { epilogue_bf16, epilogue_bf16_gelu, epilogue_bf16_gelu_tanh, epilogue_bf16_gated, epilogue_bf16_residual },
    { epilogue_int8, epilogue_int8_gelu, epilogue_int8_gelu_tanh, epilogue_int8_gated, epilogue_int8_residual },
};

/* Two panels of the weight, and the first output of each. */
typedef struct { const uint8_t *at[2]; int64_t left, right; } panels;

INLINE panels panels_of(const gemm *p, int64_t i)
{
    panels w;
    w.left = p->epilogue == EPILOGUE_GATED ? 16 * i : 32 * i;
    w.right = p->epilogue == EPILOGUE_GATED ? p->outputs / 2 + w.left : w.left + 16;
    w.at[0] = p->packed + w.left / 16 * p->steps * TILE;
    w.at[1] = p->packed + w.right / 16 * p->steps * TILE;
    return w;
}

/* Rows cut into row blocks of about equal size, in groups of `group` rows. */
typedef struct { int64_t rows, group, groups, blocks; } cut;

INLINE int64_t first_group(const cut *c, int64_t block)
{
    return c->groups * block / c->blocks;
}

INLINE int64_t first_row(const cut *c, int64_t block)
{
    const int64_t row = c->group * first_group(c, block);
    return row < c->rows ? row : c->rows;
}

/* The first pass of a thread's share. A pass is a row block by a pair of panels; passes are counted over all pairs of the first
 * row block, then of the second, and so on. work: the work before the share, in groups of rows times pairs of panels */
INLINE int64_t pass_at(const cut *c, int64_t pairs, int64_t work)
{
    for (int64_t block = 0; block < c->blocks; block++) {
        const int64_t groups = first_group(c, block + 1) - first_group(c, block);
        if (work < groups * pairs)
            return block * pairs + work / groups;
        work -= groups * pairs;
    }
    return c->blocks * pairs;
}

/* ---- by tiles ------------------------------------------------------------------------------------------------------ */

#define MULTIPLY(sums, rows, panel)                                                                                   \
    do {                                                                                                              \
        if (quantized)                                                                                                \
            _tile_dpbusd(sums, rows, panel);                                                                          \
        else                                                                                                          \
            _tile_dpbf16ps(sums, rows, panel);                                                                        \
    } while (0)

/* Begin a tile's sums at 0, or at the sums of the K blocks before. The sums of other rows that the tile still holds are stored
 * only now, one tile at a time between multiplications: after four stores in a row the tile unit would wait for its result. */
#define BEGIN(tile, place)                                                                                            \
    do {                                                                                                              \
        _tile_stored(tile, *held + (place), SUMS_BYTES);                                                              \
        if (from)                                                                                                     \
            _tile_stream_loadd(tile, kept + (place), SUMS_BYTES);                                                     \
        else                                                                                                          \
            _tile_zero(tile);                                                                                         \
    } while (0)

/* Rows from `row` to `end` by two panels, into `sums`, 32 a row. The epilogue of the sums `before` runs meanwhile, since tile
 * multiplications leave half of the vector unit idle. next: the panels after these. held: the address for the sums that the
 * tiles still hold. cold: the rows are not in the second-level cache yet. */
INLINE void pass_by_tiles(const gemm *p, int64_t row, int64_t end, const panels *w, const panels *next, float *sums,
                          float **held, pending_sums *before, epilogue_function *run_epilogue, int cold, int quantized)
{
    const int64_t k_blocks = (p->steps + K_BLOCK - 1) / K_BLOCK, longest = (p->steps + k_blocks - 1) / k_blocks;
    const int64_t groups = (end - row + 31) / 32;
    const int64_t lines = (TILE_ROWS + groups - 1) / groups;
    for (int64_t from = 0; from < p->steps; from += longest) {
        const int64_t steps = p->steps - from < longest ? p->steps - from : longest;
        const uint8_t *left = w->at[0] + from * TILE, *right = w->at[1] + from * TILE;
        const int last = from + steps == p->steps;
        const uint8_t *ahead[2] = { last ? next->at[0] : left + steps * TILE, last ? next->at[1] : right + steps * TILE };
        /* After the last K block sums are complete. Their epilogue runs during the next 32 rows, while the first-level cache
         * still has the sums, and before the sums of those rows are stored in their place. */
        const int64_t epilogue_rows = (32 + steps - 1) / steps;
        int64_t fetched = 0;
        for (int64_t i = row; i < end; i += 32) {
            const uint8_t *upper = p->x + i * TILE_BYTES + from * p->block_stride, *lower = upper + TILE;
            float *kept = sums + WHOLE + (i - row) * 32, *now = last ? sums : kept;
            const int both = end - i > 16;
            for (int64_t k = 0; k < steps; k++) {
                _tile_stream_loadd(4, upper + k * p->block_stride, TILE_BYTES);
                _tile_loadd(6, left + k * TILE, TILE_BYTES);
                if (k == 0)
                    BEGIN(0, UPPER_LEFT);
                MULTIPLY(0, 4, 6);
                _tile_loadd(7, right + k * TILE, TILE_BYTES);
                if (k == 0)
                    BEGIN(1, UPPER_RIGHT);
                MULTIPLY(1, 4, 7);
                if (k == 0)
                    BEGIN(2, LOWER_LEFT);
                if (both) {
                    _tile_stream_loadd(5, lower + k * p->block_stride, TILE_BYTES);
                    MULTIPLY(2, 5, 6);
                }
                if (k == 0)
                    BEGIN(3, LOWER_RIGHT);
                if (both)
                    MULTIPLY(3, 5, 7);
                for (int64_t n = 0; n < lines && fetched < steps * TILE; n++, fetched += 64) {
                    _mm_prefetch(ahead[0] + fetched, _MM_HINT_T1);
                    _mm_prefetch(ahead[1] + fetched, _MM_HINT_T1);
                }
                if (cold)
                    for (int64_t n = 32; n < 64; n++)
                        _mm_prefetch(upper + k * p->block_stride + n * TILE_BYTES, _MM_HINT_T1);
                if (before->done < before->rows)
                    run_epilogue(p, before, epilogue_rows);
            }
            *held = now;
            if (last)
                *before = (pending_sums){ now, i, end - i < 32 ? end - i : 32, w->left, w->right, 0 };
        }
    }
}

/* A thread's passes. sums: memory for 32 rows whose epilogue runs, then for a row block */
INLINE void passes_by_tiles(const gemm *p, const cut *c, range *ranges, int64_t thread, int64_t team, float *sums,
                            int quantized)
{
    const int64_t pairs = p->outputs / 32;
    epilogue_function *const run_epilogue = EPILOGUES[quantized][p->epilogue];
    pending_sums before = { sums, 0, 0, 0, 0, 0 };
    float *held = sums; /* the tiles hold nothing yet; the first stores go to unused memory */
    int64_t warm = -1;  /* the row block of the last pass */
    for (int64_t i; (i = take_piece(ranges, thread, team)) >= 0;) {
        const int64_t block = i / pairs;
        const panels now = panels_of(p, i % pairs), next = panels_of(p, (i + 1) % pairs);
        pass_by_tiles(p, first_row(c, block), first_row(c, block + 1), &now, &next, sums, &held, &before, run_epilogue,
                      block != warm, quantized);
        warm = block;
    }
    _tile_stored(0, held + UPPER_LEFT, SUMS_BYTES);
    _tile_stored(1, held + UPPER_RIGHT, SUMS_BYTES);
    _tile_stored(2, held + LOWER_LEFT, SUMS_BYTES);
    _tile_stored(3, held + LOWER_RIGHT, SUMS_BYTES);
    run_epilogue(p, &before, 32);
}

/* ---- by vectors ---------------------------------------------------------------------------------------------------- */

/* Rows from `row` to `end` by two panels. next: the panels after these */
INLINE void pass_by_vectors(const gemm *p, int64_t row, int64_t end, const panels *w, const panels *next, float *sums,
                            epilogue_function *run_epilogue, int quantized)
{
    const int64_t rows = end - row, groups = (rows + VECTOR_ROWS - 1) / VECTOR_ROWS;
    microkernel f = {
        .block_stride = p->block_stride,
        .left = w->at[0],
        .right = w->at[1],
        .depth = 16 * p->steps,
        .sums = sums,
        .stride = 32,
        .ahead = { next->at[0], next->at[1] },
        .lines = (TILE_ROWS + groups - 1) / groups,
        .end = p->steps * TILE,
    };
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = row + rows * g / groups, count = row + rows * (g + 1) / groups - first;
        f.rows = p->x + first * TILE_BYTES;
        (quantized ? rerankd_multiply_int8 : rerankd_multiply_bf16)(&f, count);
        pending_sums whole = { sums, first, count, w->left, w->right, 0 };
        run_epilogue(p, &whole, count);
    }
}

/* A thread's passes. sums: memory for VECTOR_ROWS rows */
INLINE void passes_by_vectors(const gemm *p, const cut *c, range *ranges, int64_t thread, int64_t team, float *sums,
                              int quantized)
{
    const int64_t pairs = p->outputs / 32;
    for (int64_t i; (i = take_piece(ranges, thread, team)) >= 0;) {
        const int64_t block = i / pairs;
        const panels now = panels_of(p, i % pairs), next = panels_of(p, (i + 1) % pairs);
        pass_by_vectors(p, first_row(c, block), first_row(c, block + 1), &now, &next, sums, EPILOGUES[quantized][p->epilogue],
                        quantized);
    }
}

/* ---- by either ----------------------------------------------------------------------------------------------------- */

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

TARGET void rerankd_gemm(int threads, int tiles, const gemm *p)
{
    /* Threads share row blocks, and the outputs of a row block: of few rows each thread reads a part of the weight. */
    const int64_t bytes = tiles ? TILES_BLOCK_BYTES : VECTORS_BLOCK_BYTES, pairs = p->outputs / 32;
    int64_t most = clamp(bytes / (p->steps * TILE_BYTES), 32, MOST_BLOCK_ROWS);
    /* By vectors, of more rows each thread takes its own: the rows that operations on single rows give it before and after. */
    if (!tiles && p->rows >= ALONE_ROWS * threads && p->rows < most * threads)
        most = (p->rows + threads - 1) / threads;
    const int64_t group = tiles ? 32 : 1, groups = (p->rows + group - 1) / group;
    const cut c = { p->rows, group, groups, (groups + most / group - 1) / (most / group) };
    range ranges[threads];
    for (int64_t i = 0; i < threads; i++) {
        ranges[i].next = pass_at(&c, pairs, c.groups * pairs * i / threads);
        ranges[i].end = pass_at(&c, pairs, c.groups * pairs * (i + 1) / threads);
    }
#pragma omp parallel num_threads(threads)
    {
        float sums[WHOLE + MOST_BLOCK_ROWS * 32] __attribute__((aligned(64)));
        const int64_t thread = omp_get_thread_num();
        if (tiles)
            begin_tiles();
        if (tiles && p->scales)
            passes_by_tiles(p, &c, ranges, thread, threads, sums, 1);
        else if (tiles)
            passes_by_tiles(p, &c, ranges, thread, threads, sums, 0);
        else if (p->scales)
            passes_by_vectors(p, &c, ranges, thread, threads, sums, 1);
        else
            passes_by_vectors(p, &c, ranges, thread, threads, sums, 0);
        if (tiles)
            end_tiles();
    }
}
#endif

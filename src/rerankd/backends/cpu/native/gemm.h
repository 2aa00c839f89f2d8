/* GEMMs of rows and a packed weight, with fused epilogues, by the vector unit. gemm_tiles.h has the passes of AMX. */
#ifndef RERANKD_GEMM_H
#define RERANKD_GEMM_H

#include "microkernel.h"
#include "panels.h"

/* Bytes of rows in a row block. By tiles: a second-level cache of 2 MB evicts the block before slowly. By vectors: most of a
 * second-level cache of 1 MB is left to the weight. */
enum { TILES_BLOCK_BYTES = 3 << 18, VECTORS_BLOCK_BYTES = 3 << 17, MOST_BLOCK_ROWS = 512 };

/* Rows of a thread from which on it is worth reading the whole weight. */
enum { ALONE_ROWS = 128 };

TARGET static void pack_weight(int64_t outputs, int64_t inputs, const void *weight, void *packed)
{
    const matrix w = { (void *)weight, inputs, VALUES };
    pack_panels(&w, 0, 0, outputs, inputs, packed);
}

/* Pack an 8-bit weight [outputs, inputs] into panels of 16 outputs, with ADJACENT codes of each at a time, and sum its rows. */
static void pack_int8_weight(int64_t outputs, int64_t inputs, const int8_t *weight, void *packed, float *sums)
{
    for (int64_t o = 0; o < outputs; o++) {
        signed_code *panel = (signed_code *)packed + o / 16 * 16 * inputs + o % 16 * ADJACENT;
        sums[o] = 0;
        for (int64_t i = 0; i < inputs; i++) {
            panel[i / ADJACENT * 16 * ADJACENT + i % ADJACENT] = weight[o * inputs + i];
            sums[o] += weight[o * inputs + i];
        }
    }
}

INLINE vector sigmoid(vector x)
{
    /* The bound of 100 avoids slow subnormal values. */
    return reciprocal(add(all(1.0f), exp2_of(smaller(all(100.0f), multiply(x, all(-LOG2_E))))));
}

INLINE vector gelu_tanh(vector x)
{
    vector cubic = multiply_add(multiply(multiply(x, x), x), all(0.044715f), x);
    return multiply(x, sigmoid(multiply(cubic, all(1.5957691216f))));
}

INLINE vector quick_gelu(vector x)
{
    return multiply(x, sigmoid(multiply(x, all(1.702f))));
}

/* Sums of up to 32 rows by 32 outputs whose epilogue has yet to run, from row `done` on. */
typedef struct { const float *sums; int64_t row, rows, left, right, done; } pending_sums;

/* Values of 16 outputs that all rows share. */
typedef struct { vector bias[PARTS], scales[PARTS], sums[PARTS]; } outputs;

INLINE outputs outputs_at(const gemm *p, int64_t column, int quantized)
{
    outputs of;
    for (int i = 0; i < PARTS; i++, column += LANES) {
        of.bias[i] = p->bias ? load(p->bias + column) : all(0.0f);
        of.scales[i] = quantized ? load(p->scales + column) : of.bias[i];
        of.sums[i] = quantized ? load(p->sums + column) : of.bias[i];
    }
    return of;
}

/* Part i of 16 outputs of a row from their sums, which are integers of codes. */
INLINE vector output(const gemm *p, const float *sums, int64_t row, const outputs *of, int i, int quantized)
{
    const vector y = load(sums + i * LANES);
    if (!quantized)
        return add(y, of->bias[i]);
    const vector step = all(p->row_steps[row]), zero = all(p->row_zeros[row]);
    const vector whole = subtract_product(of->sums[i], zero, floats_of(as_bits(y)));
    return multiply_add(whole, multiply(of->scales[i], step), of->bias[i]);
}

INLINE vector activate(vector y, int epilogue)
{
    if (epilogue == EPILOGUE_GELU)
        return gelu(y);
    if (epilogue == EPILOGUE_GELU_TANH)
        return gelu_tanh(y);
    if (epilogue == EPILOGUE_QUICK_GELU)
        return quick_gelu(y);
    return y;
}

/* Compute the epilogue of up to `count` rows of sums and write the outputs: 32 of a row, or 16 that are gated. */
INLINE void epilogue_of_rows(const gemm *p, pending_sums *u, int64_t count, int quantized, int epilogue)
{
    const int64_t stop = u->done + count < u->rows ? u->done + count : u->rows;
    const outputs of_left = outputs_at(p, u->left, quantized), of_right = outputs_at(p, u->right, quantized);
    value *const first = address_of(&p->out, u->row, u->left), *const second = address_of(&p->out, u->row, u->left + 16);
    for (int64_t at = u->done; at < stop; at++) {
        const int64_t row = u->row + at;
        value *const out[2] = { first + at * p->out.row, second + at * p->out.row };
        const float *sums = u->sums + 32 * at;
        vector y[2 * PARTS];
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) {
            y[i] = output(p, sums, row, &of_left, i, quantized);
            y[PARTS + i] = output(p, sums + 16, row, &of_right, i, quantized);
        }
        if (epilogue == EPILOGUE_GATED) {
#pragma GCC unroll 4
            for (int i = 0; i < PARTS; i++)
                store_values(out[0] + i * LANES, multiply(multiply(y[i], sigmoid(y[i])), y[PARTS + i]));
            continue;
        }
        if (epilogue == EPILOGUE_RESIDUAL) {
            const value *left = address_of(&p->residual, row, u->left), *right = address_of(&p->residual, row, u->left + 16);
#pragma GCC unroll 4
            for (int i = 0; i < PARTS; i++) {
                y[i] = add(y[i], load_values(left + i * LANES));
                y[PARTS + i] = add(y[PARTS + i], load_values(right + i * LANES));
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 2 * PARTS; i++)
            y[i] = activate(y[i], epilogue);
        store_block(out[0], y);
        if (VALUES == 16)
            store_block(out[1], y + PARTS);
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
EPILOGUE_FUNCTION(epilogue_values, 0, EPILOGUE_NONE)
EPILOGUE_FUNCTION(epilogue_values_gelu, 0, EPILOGUE_GELU)
EPILOGUE_FUNCTION(epilogue_values_gelu_tanh, 0, EPILOGUE_GELU_TANH)
EPILOGUE_FUNCTION(epilogue_values_quick_gelu, 0, EPILOGUE_QUICK_GELU)
EPILOGUE_FUNCTION(epilogue_values_gated, 0, EPILOGUE_GATED)
EPILOGUE_FUNCTION(epilogue_values_residual, 0, EPILOGUE_RESIDUAL)
EPILOGUE_FUNCTION(epilogue_int8, 1, EPILOGUE_NONE)
EPILOGUE_FUNCTION(epilogue_int8_gelu, 1, EPILOGUE_GELU)
EPILOGUE_FUNCTION(epilogue_int8_gelu_tanh, 1, EPILOGUE_GELU_TANH)
EPILOGUE_FUNCTION(epilogue_int8_quick_gelu, 1, EPILOGUE_QUICK_GELU)
EPILOGUE_FUNCTION(epilogue_int8_gated, 1, EPILOGUE_GATED)
EPILOGUE_FUNCTION(epilogue_int8_residual, 1, EPILOGUE_RESIDUAL)
static epilogue_function *const EPILOGUES[2][EPILOGUE_COUNT] = {
    { epilogue_values, epilogue_values_gelu, epilogue_values_gelu_tanh, epilogue_values_quick_gelu, epilogue_values_gated,
      epilogue_values_residual },
    { epilogue_int8, epilogue_int8_gelu, epilogue_int8_gelu_tanh, epilogue_int8_quick_gelu, epilogue_int8_gated,
      epilogue_int8_residual },
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

/* Rows from `row` to `end` by two panels, in runs of up to RUN steps, whose panels stay in the first-level cache while all rows
 * pass by. next: the panels after these */
INLINE void pass_by_vectors(const gemm *p, int64_t row, int64_t end, const panels *w, const panels *next, float *sums,
                            epilogue_function *run_epilogue, int kind)
{
    const int64_t rows = end - row, runs = (p->steps + RUN - 1) / RUN;
    const int64_t most = kind == BYTES ? CODE_ROWS : MICRO_ROWS, groups = (rows + most - 1) / most;
    microkernel f = {
        .block_stride = p->block_stride,
        .stride = 32,
        .ahead = { next->at[0], next->at[1] },
        .lines = (TILE_ROWS + groups - 1) / groups,
        .end = p->steps * TILE,
    };
    for (int64_t run = 0; run < runs; run++) {
        const int64_t from = p->steps * run / runs, steps = p->steps * (run + 1) / runs - from;
        f.left = w->at[0] + from * TILE;
        f.right = w->at[1] + from * TILE;
        f.depth = 16 * steps;
        f.accumulate = run > 0;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t first = row + rows * g / groups, count = row + rows * (g + 1) / groups - first;
            f.rows = p->x + first * TILE_BYTES + from * p->block_stride;
            f.sums = sums + (runs > 1 ? 32 * (first - row) : 0);
            (kind == BYTES ? multiply_codes : kind == HALVES ? multiply_halves : multiply_values)(&f, count);
            if (run + 1 < runs)
                continue;
            pending_sums whole = { f.sums, first, count, w->left, w->right, 0 };
            run_epilogue(p, &whole, count);
        }
    }
}

/* A thread's passes. sums: memory for the rows of a row block */
INLINE void passes_by_vectors(const gemm *p, const cut *c, const team *t, int64_t thread, float *sums, int kind)
{
    const int64_t pairs = p->outputs / 32;
    for (int64_t i; (i = take_piece(t, thread)) >= 0;) {
        const int64_t block = i / pairs;
        const panels now = panels_of(p, i % pairs), next = panels_of(p, (i + 1) % pairs);
        pass_by_vectors(p, first_row(c, block), first_row(c, block + 1), &now, &next, sums,
                        EPILOGUES[kind != WHOLE_VALUES][p->epilogue], kind);
    }
}

INLINE int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* The row blocks that threads share, and the outputs of a row block: of few rows each thread reads a part of the weight. */
TARGET static cut cut_of(const gemm *p, int64_t threads, int tiles)
{
    int64_t most = clamp((tiles ? TILES_BLOCK_BYTES : VECTORS_BLOCK_BYTES) / (p->steps * TILE_BYTES), 32, MOST_BLOCK_ROWS);
    /* By vectors, of more rows each thread takes its own: the rows that operations on single rows give it before and after. */
    if (!tiles && p->rows >= ALONE_ROWS * threads && p->rows < most * threads)
        most = (p->rows + threads - 1) / threads;
    const int64_t group = tiles ? 32 : 1, groups = (p->rows + group - 1) / group;
    return (cut){ p->rows, group, groups, (groups + most / group - 1) / (most / group) };
}

TARGET static void share_passes(team *t, const gemm *p, int tiles)
{
    const cut c = cut_of(p, t->threads, tiles);
    const int64_t pairs = p->outputs / 32;
    for (int64_t i = 0; i < t->threads; i++)
        t->ranges[i] = (range){ pass_at(&c, pairs, c.groups * pairs * i / t->threads),
                                pass_at(&c, pairs, c.groups * pairs * (i + 1) / t->threads) };
}

TARGET static void share_gemm(team *t, const void *o)
{
    share_passes(t, o, 0);
}

TARGET static void work_gemm(const team *t, int64_t thread, const void *o)
{
    const gemm *p = o;
    const cut c = cut_of(p, t->threads, 0);
    float sums[MOST_BLOCK_ROWS * 32] __attribute__((aligned(64)));
    if (LARGEST_HALF && p->halves)
        passes_by_vectors(p, &c, t, thread, sums, HALVES);
    else if (p->scales)
        passes_by_vectors(p, &c, t, thread, sums, BYTES);
    else
        passes_by_vectors(p, &c, t, thread, sums, WHOLE_VALUES);
}

#endif

/* The operations of a layer, each with what it reads and writes: as `native/__init__.py` packs it, 8 bytes a value. */
#ifndef RERANKD_OPERATIONS_H
#define RERANKD_OPERATIONS_H

#include "common.h"

/* out = x / sqrt(mean(x^2) + eps) * weight */
typedef struct {
    int64_t rows, width;
    matrix x;
    const bf16 *weight;
    double eps;
    matrix out;
} rms_norm;

/* Each head's RMSNorm, then its rotation: x and out [rows, heads * head_dim], cosines and sines [rows, head_dim / 2]. */
typedef struct {
    int64_t rows, heads, head_dim;
    matrix x;
    const bf16 *weight;
    double eps;
    const bf16 *cosines, *sines;
    matrix out;
} norm_rotate;

/* LayerNorm of x + delta, in float32 as `out` and rounded as `rounded`. */
typedef struct {
    int64_t rows, width;
    const float *x;
    matrix delta;
    const float *weight, *bias;
    double eps;
    float *out;
    matrix rounded;
} add_layer_norm;

/* Rows [rows, width] in strips. */
typedef struct {
    int64_t rows, width;
    matrix x, out;
} tile;

/* The rows whose numbers `rows` has, copied; a row is `runs` times `bytes` bytes, and strides count bytes. */
typedef struct {
    int64_t count;
    const int64_t *rows;
    int64_t runs, bytes;
    const char *x;
    int64_t x_row, x_run;
    char *out;
    int64_t out_row, out_run;
} choose;

/* Rows as unsigned 8-bit integers, x = (code - zero) * step, in strips with `strip` bytes between them. Each row has a step
 * and a zero of its own, so that its whole range, lopsided or not, is used. width is a multiple of 64. */
typedef struct {
    int64_t rows, width;
    matrix x;
    uint8_t *codes;
    int64_t strip;
    float *steps, *zeros;
} quantize;

/* x [rows, steps of 64 bytes] W^T + bias and what follows it; outputs is a multiple of 32. scales and what is below it are
 * NULL for bfloat16 rows. */
typedef struct {
    int64_t rows, steps, outputs;
    const uint8_t *strips;
    int64_t strip;            /* bytes between strips */
    const uint8_t *packed;
    const float *bias;        /* [outputs] or NULL */
    matrix other;             /* [rows, outputs] that are added */
    matrix out;
    int64_t then;
    const float *scales;      /* of each output of an 8-bit weight */
    const float *sums;        /* of each output's weights */
    const float *row_steps;
    const float *row_zeros;
} product;

/* What layout.py calls a block. */
typedef struct { int64_t query, query_stop, shared, shared_stop, own, own_stop; } block;

/* Attention as layout.py says: q and out [rows, heads * head_dim], k and v [T, kv_heads * head_dim].
 *
 * blocks: their spans; runs [run_count + 1]: where runs of blocks with one `shared` span begin; each run of each key
 * head is a piece of work, in which the shared keys and values are packed once. */
typedef struct {
    int64_t run_count;
    const int64_t *runs;
    const block *blocks;
    int64_t heads, kv_heads, head_dim;
    matrix q, k, v;
    int64_t causal;
    double scale;
    matrix out;
} attention;

void rerankd_rms_norm(int threads, const rms_norm *o);
void rerankd_norm_rotate(int threads, const norm_rotate *o);
void rerankd_add_layer_norm(int threads, const add_layer_norm *o);
void rerankd_tile(int threads, const tile *o);
void rerankd_choose(int threads, const choose *o);
void rerankd_quantize(int threads, const quantize *o);
/* By tiles, or by the vector unit. */
void rerankd_product(int threads, int tiles, const product *p);
/* The same; returns 0, or 1 where memory ran out. */
int rerankd_attention(int threads, int tiles, const attention *o);

#endif

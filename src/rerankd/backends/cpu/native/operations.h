/* The operations of a layer, each with what it reads and writes: as `native/__init__.py` packs it, 8 bytes a value. */
#ifndef RERANKD_OPERATIONS_H
#define RERANKD_OPERATIONS_H

#include "common.h"

#include <stddef.h>

/* To be raised with every change that Python's side has to follow and that sizes and names do not show: the order or the
 * meaning of members. `_ABI` in `native/__init__.py` is the same number. */
enum { RERANKD_ABI = 1 };

/* What Python's side compares with its own: bytes of a struct, or a number. */
typedef struct { const char *name; int64_t value; } agreed;

/* Rows of a table [count, width], by their numbers; without numbers the first. */
typedef struct { const bf16 *values; int64_t count; const int64_t *numbers; } chosen;

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

/* What follows a product. THEN_GATED: silu of the first half of the outputs, times the second half. */
enum { THEN_NOTHING, THEN_GELU, THEN_GELU_TANH, THEN_GATED, THEN_PLUS, THEN_COUNT };

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

/* All operations in the order of their numbers, each with its struct. */
#define OPERATIONS(OF)                                                                                                \
    OF(RMS_NORM, rms_norm)                                                                                            \
    OF(NORM_ROTATE, norm_rotate)                                                                                      \
    OF(ADD_LAYER_NORM, add_layer_norm)                                                                                \
    OF(TILE_ROWS_OF, tile)                                                                                            \
    OF(CHOOSE, choose)                                                                                                \
    OF(QUANTIZE, quantize)                                                                                            \
    OF(PRODUCT, product)                                                                                              \
    OF(ATTENTION, attention)

/* What rerankd_run returns. */
enum { COMPUTED, NO_MEMORY, UNKNOWN_OPERATION, CUT_SHORT };

/* Where members lie and how long structs are, in values of 8 bytes, as Python packs them: integers, addresses and
 * structs of these, or doubles. */
#define MEMBER(type, member) (((type *)0)->member)
#define IS_DOUBLE(type, member) _Generic(MEMBER(type, member), double: 1, default: 0)
#define LIES(type, member, values)                                                                                    \
    (offsetof(type, member) == 8 * (values) && sizeof MEMBER(type, member) % 8 == 0)
#define AT(type, member, values)                                                                                      \
    _Static_assert(LIES(type, member, values) && !IS_DOUBLE(type, member), #type "." #member)
#define DOUBLE_AT(type, member, values)                                                                               \
    _Static_assert(LIES(type, member, values) && IS_DOUBLE(type, member), #type "." #member)
#define LENGTH(type, values) _Static_assert(sizeof(type) == 8 * (values), #type)
AT(matrix, at, 0); AT(matrix, row, 1); AT(matrix, columns, 2); LENGTH(matrix, 3);
AT(chosen, values, 0); AT(chosen, count, 1); AT(chosen, numbers, 2); LENGTH(chosen, 3);
AT(block, query, 0); AT(block, query_stop, 1); AT(block, shared, 2); AT(block, shared_stop, 3); AT(block, own, 4);
AT(block, own_stop, 5); LENGTH(block, 6);
AT(rms_norm, rows, 0); AT(rms_norm, width, 1); AT(rms_norm, x, 2); AT(rms_norm, weight, 5); DOUBLE_AT(rms_norm, eps, 6);
AT(rms_norm, out, 7); LENGTH(rms_norm, 10);
AT(norm_rotate, rows, 0); AT(norm_rotate, heads, 1); AT(norm_rotate, head_dim, 2); AT(norm_rotate, x, 3);
AT(norm_rotate, weight, 6); DOUBLE_AT(norm_rotate, eps, 7); AT(norm_rotate, cosines, 8); AT(norm_rotate, sines, 9);
AT(norm_rotate, out, 10); LENGTH(norm_rotate, 13);
AT(add_layer_norm, rows, 0); AT(add_layer_norm, width, 1); AT(add_layer_norm, x, 2); AT(add_layer_norm, delta, 3);
AT(add_layer_norm, weight, 6); AT(add_layer_norm, bias, 7); DOUBLE_AT(add_layer_norm, eps, 8); AT(add_layer_norm, out, 9);
AT(add_layer_norm, rounded, 10); LENGTH(add_layer_norm, 13);
AT(tile, rows, 0); AT(tile, width, 1); AT(tile, x, 2); AT(tile, out, 5); LENGTH(tile, 8);
AT(choose, count, 0); AT(choose, rows, 1); AT(choose, runs, 2); AT(choose, bytes, 3); AT(choose, x, 4);
AT(choose, x_row, 5); AT(choose, x_run, 6); AT(choose, out, 7); AT(choose, out_row, 8); AT(choose, out_run, 9);
LENGTH(choose, 10);
AT(quantize, rows, 0); AT(quantize, width, 1); AT(quantize, x, 2); AT(quantize, codes, 5); AT(quantize, strip, 6);
AT(quantize, steps, 7); AT(quantize, zeros, 8); LENGTH(quantize, 9);
AT(product, rows, 0); AT(product, steps, 1); AT(product, outputs, 2); AT(product, strips, 3); AT(product, strip, 4);
AT(product, packed, 5); AT(product, bias, 6); AT(product, other, 7); AT(product, out, 10); AT(product, then, 13);
AT(product, scales, 14); AT(product, sums, 15); AT(product, row_steps, 16); AT(product, row_zeros, 17);
LENGTH(product, 18);
AT(attention, run_count, 0); AT(attention, runs, 1); AT(attention, blocks, 2); AT(attention, heads, 3);
AT(attention, kv_heads, 4); AT(attention, head_dim, 5); AT(attention, q, 6); AT(attention, k, 9); AT(attention, v, 12);
AT(attention, causal, 15); DOUBLE_AT(attention, scale, 16); AT(attention, out, 17); LENGTH(attention, 20);

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

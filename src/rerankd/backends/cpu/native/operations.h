/* The operations of a layer. Each struct holds one operation's operands, 8 bytes a value, as descriptors.py packs them. */
#ifndef RERANKD_OPERATIONS_H
#define RERANKD_OPERATIONS_H

#include "team.h"

#include <stddef.h>

/* Raise this number with every change of the order or the meaning of members: sizes and names do not show such a change, and
 * Python has to follow it. `ABI` in descriptors.py is the same number. */
enum { RERANKD_ABI = 5 };

/* An entry that Python compares with its own: bytes of a struct, or a number. */
typedef struct { const char *name; int64_t value; } agreed;

/* A matrix in the blocked layout (common.h) or row after row. row: values from a row to the next; columns: values from a column
 * block of 64 bytes to the next. */
typedef struct { void *at; int64_t row, columns; } matrix;

/* A look-up in a table [count, width]: the indices of rows, or NULL for the first row every time. */
typedef struct { const void *values; int64_t count; const int64_t *indices; } lookup;

/* out = x / sqrt(mean(x^2) + eps) * weight */
typedef struct {
    int64_t rows, width;
    matrix x;
    const void *weight;
    double eps;
    matrix out;
} rms_norm;

/* RMSNorm and rotary embedding of each head: x and out [rows, heads * head_dim], cosines and sines [rows, head_dim / 2]. */
typedef struct {
    int64_t rows, heads, head_dim;
    matrix x;
    const void *weight;
    double eps;
    const void *cosines, *sines;
    matrix out;
} norm_rope;

/* LayerNorm of x + delta: `out` in float32, `rounded` in the dtype of rows. x is float32. In float32 the last two may be one. */
typedef struct {
    int64_t rows, width;
    matrix x, delta;
    const float *weight, *bias;
    double eps;
    matrix out, rounded;
} add_layer_norm;

/* LayerNorm of the sum of three embeddings, as above. */
typedef struct {
    int64_t rows, width;
    lookup tables[3];
    const float *weight, *bias;
    double eps;
    matrix out, rounded;
} embed_layer_norm;

/* A copy of x [rows, width] in the blocked layout (common.h). */
typedef struct {
    int64_t rows, width;
    matrix x, out;
} to_blocked;

/* Copies of the rows with these indices. A row is `segments` times `segment_bytes` bytes; strides count bytes. */
typedef struct {
    int64_t count;
    const int64_t *indices;
    int64_t segments, segment_bytes;
    const char *x;
    int64_t x_row, x_segment;
    char *out;
    int64_t out_row, out_segment;
} index_select;

/* Rows as 8-bit integers, or as 16-bit ones if `halves`, x = (code - zero) * step, in the blocked layout with `block_stride`
 * bytes from a column block to the next. Codes of 8 bits are unsigned, or by units of ARM signed; those of 16 bits are signed, with
 * a zero of 0. Each row has a step and a zero of its own, so that the codes cover the row's range. width is a multiple of 64. */
typedef struct {
    int64_t rows, width;
    matrix x;
    void *codes;
    int64_t block_stride;
    float *steps, *zeros;
    int64_t halves;
} quantize;

/* The epilogue of a GEMM. EPILOGUE_GATED: silu of the first half of the outputs, times the second half. */
enum { EPILOGUE_NONE, EPILOGUE_GELU, EPILOGUE_GELU_TANH, EPILOGUE_QUICK_GELU, EPILOGUE_GATED, EPILOGUE_RESIDUAL, EPILOGUE_COUNT };

/* x [rows, steps of 64 bytes] W^T + bias, then the epilogue. outputs is a multiple of 32. scales and the members below are NULL
 * for rows that are not quantised. */
typedef struct {
    int64_t rows, steps, outputs;
    const uint8_t *x;         /* in the blocked layout */
    int64_t block_stride;     /* bytes from a column block to the next */
    const uint8_t *packed;
    const float *bias;        /* [outputs] or NULL */
    matrix residual;          /* [rows, outputs], for EPILOGUE_RESIDUAL */
    matrix out;
    int64_t epilogue;
    const float *scales;      /* [outputs], of a weight in 8 or 16 bits */
    const float *sums;        /* [outputs], sums of the weights of an output */
    const float *row_steps;
    const float *row_zeros;
    int64_t halves;           /* whether rows and weight have 16 bits */
} gemm;

/* A `Block` of layout.py. */
typedef struct { int64_t query, query_stop, shared, shared_stop, own, own_stop; } block;

/* Shared-prefix (cascade) attention over the layout of layout.py: q and out [rows, heads * head_dim], k and v
 * [T, kv_heads * head_dim].
 *
 * blocks: the spans of each block; runs [run_count + 1]: the first block of each run of blocks that share a prefix. A run and a
 * key head are a piece of work, for which the prefix's keys and values are packed once. */
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
    OF(NORM_ROPE, norm_rope)                                                                                          \
    OF(ADD_LAYER_NORM, add_layer_norm)                                                                                \
    OF(EMBED_LAYER_NORM, embed_layer_norm)                                                                            \
    OF(TO_BLOCKED, to_blocked)                                                                                        \
    OF(INDEX_SELECT, index_select)                                                                                    \
    OF(QUANTIZE, quantize)                                                                                            \
    OF(GEMM, gemm)                                                                                                    \
    OF(ATTENTION, attention)

#define NUMBER(number, type) number,
enum { OPERATIONS(NUMBER) OPERATION_COUNT };

/* How to compute an operation: `share` divides its work among the threads of a team, then each thread does its part. */
typedef struct {
    void (*share)(team *t, const void *operands);
    void (*work)(const team *t, int64_t thread, const void *operands);
} function;

/* The kernels for an instruction set and a dtype of rows.
 *
 * attention_bytes: the scratch memory of a thread
 * pack: a weight [outputs, inputs] in the dtype of rows, as GEMMs read it
 * pack_int8: the same of 8 bits, and the sums of its rows
 * largest_weight: the largest magnitude of an 8-bit weight
 * largest_sum: the largest sum of the positive 8-bit weights, and of the negative ones, at inputs i, i + 1, i + 4 and i + 5 of an
 *     output, for i of 0 or 2 modulo 8; 0 for any sum
 * largest_half: the largest magnitude of a row's 16-bit codes, 0 for a unit without them */
typedef struct {
    function functions[OPERATION_COUNT];
    int64_t (*attention_bytes)(const attention *o);
    void (*pack)(int64_t outputs, int64_t inputs, const void *weight, void *packed);
    void (*pack_int8)(int64_t outputs, int64_t inputs, const int8_t *weight, void *packed, float *sums);
    int64_t largest_weight, largest_sum, largest_half;
} unit;

/* The units in the order of their numbers: each processor that has one has those before it of its architecture and dtype. */
#define UNITS(OF)                                                                                                     \
    OF(AVX2, avx2)                                                                                                    \
    OF(AVXVNNI, avxvnni)                                                                                              \
    OF(AVX512, avx512)                                                                                                \
    OF(AVX512_VNNI, avx512_vnni)                                                                                      \
    OF(AVX512_BF16, avx512_bf16)                                                                                      \
    OF(AMX, amx)                                                                                                      \
    OF(NEON, neon)                                                                                                    \
    OF(NEON_DOTPROD, neon_dotprod)                                                                                    \
    OF(NEON_I8MM, neon_i8mm)                                                                                          \
    OF(NEON_BF16, neon_bf16)
enum { UNITS(NUMBER) UNIT_COUNT };

/* The results of rerankd_run. */
enum { COMPUTED, NO_MEMORY, UNKNOWN_OPERATION, CUT_SHORT, OUTSIDE_OF_TABLE };

/* The offsets of members and the sizes of structs, in values of 8 bytes, as Python packs them: integers, addresses and structs
 * of these, or doubles. */
#define MEMBER(type, member) (((type *)0)->member)
#define IS_DOUBLE(type, member) _Generic(MEMBER(type, member), double: 1, default: 0)
#define IS_AT(type, member, values)                                                                                    \
    (offsetof(type, member) == 8 * (values) && sizeof MEMBER(type, member) % 8 == 0)
#define AT(type, member, values)                                                                                      \
    _Static_assert(IS_AT(type, member, values) && !IS_DOUBLE(type, member), #type "." #member)
#define DOUBLE_AT(type, member, values)                                                                               \
    _Static_assert(IS_AT(type, member, values) && IS_DOUBLE(type, member), #type "." #member)
#define LENGTH(type, values) _Static_assert(sizeof(type) == 8 * (values), #type)
AT(matrix, at, 0); AT(matrix, row, 1); AT(matrix, columns, 2); LENGTH(matrix, 3);
AT(lookup, values, 0); AT(lookup, count, 1); AT(lookup, indices, 2); LENGTH(lookup, 3);
AT(block, query, 0); AT(block, query_stop, 1); AT(block, shared, 2); AT(block, shared_stop, 3); AT(block, own, 4);
AT(block, own_stop, 5); LENGTH(block, 6);
AT(rms_norm, rows, 0); AT(rms_norm, width, 1); AT(rms_norm, x, 2); AT(rms_norm, weight, 5); DOUBLE_AT(rms_norm, eps, 6);
AT(rms_norm, out, 7); LENGTH(rms_norm, 10);
AT(norm_rope, rows, 0); AT(norm_rope, heads, 1); AT(norm_rope, head_dim, 2); AT(norm_rope, x, 3);
AT(norm_rope, weight, 6); DOUBLE_AT(norm_rope, eps, 7); AT(norm_rope, cosines, 8); AT(norm_rope, sines, 9);
AT(norm_rope, out, 10); LENGTH(norm_rope, 13);
AT(add_layer_norm, rows, 0); AT(add_layer_norm, width, 1); AT(add_layer_norm, x, 2); AT(add_layer_norm, delta, 5);
AT(add_layer_norm, weight, 8); AT(add_layer_norm, bias, 9); DOUBLE_AT(add_layer_norm, eps, 10); AT(add_layer_norm, out, 11);
AT(add_layer_norm, rounded, 14); LENGTH(add_layer_norm, 17);
AT(embed_layer_norm, rows, 0); AT(embed_layer_norm, width, 1); AT(embed_layer_norm, tables, 2);
AT(embed_layer_norm, weight, 11); AT(embed_layer_norm, bias, 12); DOUBLE_AT(embed_layer_norm, eps, 13);
AT(embed_layer_norm, out, 14); AT(embed_layer_norm, rounded, 17); LENGTH(embed_layer_norm, 20);
AT(to_blocked, rows, 0); AT(to_blocked, width, 1); AT(to_blocked, x, 2); AT(to_blocked, out, 5); LENGTH(to_blocked, 8);
AT(index_select, count, 0); AT(index_select, indices, 1); AT(index_select, segments, 2); AT(index_select, segment_bytes, 3);
AT(index_select, x, 4); AT(index_select, x_row, 5); AT(index_select, x_segment, 6); AT(index_select, out, 7);
AT(index_select, out_row, 8); AT(index_select, out_segment, 9); LENGTH(index_select, 10);
AT(quantize, rows, 0); AT(quantize, width, 1); AT(quantize, x, 2); AT(quantize, codes, 5); AT(quantize, block_stride, 6);
AT(quantize, steps, 7); AT(quantize, zeros, 8); AT(quantize, halves, 9); LENGTH(quantize, 10);
AT(gemm, rows, 0); AT(gemm, steps, 1); AT(gemm, outputs, 2); AT(gemm, x, 3); AT(gemm, block_stride, 4);
AT(gemm, packed, 5); AT(gemm, bias, 6); AT(gemm, residual, 7); AT(gemm, out, 10); AT(gemm, epilogue, 13);
AT(gemm, scales, 14); AT(gemm, sums, 15); AT(gemm, row_steps, 16); AT(gemm, row_zeros, 17);
AT(gemm, halves, 18); LENGTH(gemm, 19);
AT(attention, run_count, 0); AT(attention, runs, 1); AT(attention, blocks, 2); AT(attention, heads, 3);
AT(attention, kv_heads, 4); AT(attention, head_dim, 5); AT(attention, q, 6); AT(attention, k, 9); AT(attention, v, 12);
AT(attention, causal, 15); DOUBLE_AT(attention, scale, 16); AT(attention, out, 17); LENGTH(attention, 20);

#endif

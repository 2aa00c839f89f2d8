/* Row operations for bfloat16 on x86-64 with AVX512-BF16; products and packed attention where there is AMX.
 *
 * torch computes each of these as several passes over float32 temporaries; here a row is read once and written once.
 * Plain C behind a C ABI: built without torch's headers, loaded by ctypes, and left out where it does not compile.
 * Threads are torch's own: both use the one OpenMP runtime that is loaded.
 *
 * Everywhere: bf16 is a bfloat16 as its 16 bits, strides count elements, rows are contiguous in their last dimension.
 * Widths are multiples of 16 (`Kernels.fit` checks), head dimensions multiples of 32.
 */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

/* What the processor has, as a sum of these; 0 where nothing here can run. */
enum { HAS_AVX512_BF16 = 1, HAS_AMX = 2 };

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One target for all, so that all can be inlined into each other; tiles are used only where HAS_AMX says so. */
#define TARGET                                                                                                        \
    __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,"             \
                          "prefer-vector-width=512")))
#define INLINE TARGET static inline __attribute__((always_inline))

int rerankd_features(void)
{
    unsigned a, b, c, d;
    /* Leaf 7.1 EAX bit 5 is AVX512-BF16; torch's own check of AVX512 includes that the system saves the registers. */
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")
        || !__builtin_cpu_supports("avx512vl") || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5)))
        return 0;
    int found = HAS_AVX512_BF16;
    /* Leaf 7.0 EDX bits 22, 24 and 25 are AMX-BF16, AMX-TILE and AMX-INT8; Linux hands out tile registers (feature 18) on request. */
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22)) && (d & (1u << 24)) && (d & (1u << 25))
        && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0)
        found |= HAS_AMX;
    return found;
}

INLINE __m512 load_bf16(const bf16 *from)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

INLINE void store_bf16(bf16 *to, __m512 x)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x to 3e-6 of itself, less than a 1000th of what bfloat16 keeps, for -100 <= x <= 127; next to 0 below. (Not nearer:
 * what is too small for a normal float32 takes the processor a hundred times as long.) */
INLINE __m512 exp2_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x); /* in this order not-a-number stays what it is */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.56051e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591704e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4024981e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9312197e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9999919e-1f));
    return _mm512_scalef_ps(p, n);
}

#define LOG2_E 1.44269504f

/* ---- tiles ------------------------------------------------------------------------------------------------------
 *
 * A tile is 16 rows of 64 bytes: 32 bfloat16 values or 64 8-bit ones. Rows between products lie in strips, 64 bytes of every
 * row, then the next 64 of every row: any 16 lines on end are a tile, and what a product writes, some columns of many rows,
 * it writes to lines on end, which the processor asks for by itself. Behind the last strip is room for 31 rows more, that
 * products and attention may read and never look at.
 */

enum { TILE_ROWS = 16, TILE_BYTES = 64, TILE = TILE_ROWS * TILE_BYTES };

/* Rows of bfloat16, in strips or not: how many values lie between one row and the next, and between 32 columns and the next
 * 32. */
typedef struct { bf16 *at; int64_t row, columns; } matrix;

/* Where a run of 16 values begins. */
INLINE bf16 *run_of(const matrix *m, int64_t row, int64_t column)
{
    return m->at + row * m->row + (column >> 5) * m->columns + (column & 31);
}

/* What lies from a row and a column, a multiple of 32, on. */
INLINE matrix shifted(const matrix *m, int64_t row, int64_t column)
{
    return (matrix){ run_of(m, row, column), m->row, m->columns };
}

/* ---- work ----------------------------------------------------------------------------------------------------------
 *
 * Each thread is given pieces of about the rows that are its own in all operations, since its second-level cache may have them.
 */

/* Pieces that a thread was given, of which `next` is the first that none has taken; on a line of its own. */
typedef struct { int64_t next, end; } __attribute__((aligned(64))) range;

/* A piece of the thread's own, then of what is left of the other threads', since one that shares its core with others is
 * slower; -1 where nothing is. */
INLINE int64_t take_piece(range *ranges, int64_t thread, int64_t crew)
{
    for (int64_t k = 0; k < crew; k++) {
        range *from = ranges + (thread + k) % crew;
        const int64_t piece = __atomic_fetch_add(&from->next, 1, __ATOMIC_RELAXED);
        if (piece < from->end)
            return piece;
    }
    return -1;
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

/* Rows that are computed together: lines that lie side by side in strips. */
enum { ABREAST = 8 };

/* `count` rows from `first` on; of fewer than ABREAST, the first of them again, whose results are not stored. */
INLINE void rms_norm_rows(int64_t first, int64_t count, int64_t width, const matrix *x, const bf16 *weight, float eps,
                          const matrix *out)
{
    const bf16 *from[ABREAST];
    __m512 sums[ABREAST];
    for (int64_t r = 0; r < ABREAST; r++) {
        from[r] = run_of(x, r < count ? first + r : first, 0);
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
            store_bf16(run_of(out, first + r, j), _mm512_mul_ps(_mm512_mul_ps(v, sums[r]), w));
        }
    }
}

/* out = x / sqrt(mean(x^2) + eps) * weight */
TARGET void rerankd_rms_norm(int threads, int64_t rows, int64_t width, const matrix *x, const bf16 *weight, float eps,
                             const matrix *out)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ABREAST)
        if (rows - i >= ABREAST)
            rms_norm_rows(i, ABREAST, width, x, weight, eps, out);
        else
            rms_norm_rows(i, rows - i, width, x, weight, eps, out);
}

/* Norm and rotation of one head, from column `begin` on, of `count` rows from `first` on. */
INLINE void norm_rotate_head(int64_t first, int64_t count, int64_t begin, int64_t head_dim, const matrix *x, const bf16 *weight,
                             float eps, const bf16 *cosines, const bf16 *sines, const matrix *out)
{
    const int64_t half = head_dim / 2;
    __m512 scales[ABREAST];
    for (int64_t r = 0; r < count; r++)
        scales[r] = _mm512_setzero_ps();
    for (int64_t j = 0; j < head_dim; j += 16) {
        const bf16 *at = run_of(x, first, begin + j);
        for (int64_t r = 0; r < count; r++) {
            _mm_prefetch((const char *)(at + (ABREAST + r) * x->row), _MM_HINT_T0);
            __m512 v = load_bf16(at + r * x->row);
            scales[r] = _mm512_fmadd_ps(v, v, scales[r]);
        }
    }
    for (int64_t r = 0; r < count; r++)
        scales[r] = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(scales[r]) / (float)head_dim + eps));
    for (int64_t j = 0; j < half; j += 16) {
        const bf16 *left = run_of(x, first, begin + j), *right = run_of(x, first, begin + half + j);
        bf16 *to_left = run_of(out, first, begin + j), *to_right = run_of(out, first, begin + half + j);
        const __m512 wa = load_bf16(weight + j), wb = load_bf16(weight + half + j);
        for (int64_t r = 0; r < count; r++) {
            __m512 a = _mm512_mul_ps(_mm512_mul_ps(load_bf16(left + r * x->row), scales[r]), wa);
            __m512 b = _mm512_mul_ps(_mm512_mul_ps(load_bf16(right + r * x->row), scales[r]), wb);
            __m512 c = load_bf16(cosines + (first + r) * half + j), s = load_bf16(sines + (first + r) * half + j);
            store_bf16(to_left + r * out->row, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            store_bf16(to_right + r * out->row, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
    }
}

/* Each head's RMSNorm, then its rotation: x and out [rows, heads * head_dim], cos and sin [rows, head_dim / 2]. */
TARGET void rerankd_norm_rotate(int threads, int64_t rows, int64_t heads, int64_t head_dim, const matrix *x,
                                const bf16 *weight, float eps, const bf16 *cosines, const bf16 *sines, const matrix *out)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ABREAST)
        for (int64_t h = 0; h < heads; h++)
            if (rows - i >= ABREAST)
                norm_rotate_head(i, ABREAST, h * head_dim, head_dim, x, weight, eps, cosines, sines, out);
            else
                norm_rotate_head(i, rows - i, h * head_dim, head_dim, x, weight, eps, cosines, sines, out);
}

/* LayerNorm of x + delta, in float32 as `out` and rounded as `rounded`. */
TARGET void rerankd_add_layer_norm(int threads, int64_t rows, int64_t width, const float *x, const matrix *delta,
                                   const float *weight, const float *bias, float eps, float *out, const matrix *rounded)
{
    enum { ABREAST = 4 };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ABREAST) {
        const int64_t count = rows - i < ABREAST ? rows - i : ABREAST;
        __m512 sums[ABREAST], squares[ABREAST];
        for (int64_t r = 0; r < ABREAST; r++)
            sums[r] = squares[r] = _mm512_setzero_ps();
        for (int64_t j = 0; j < width; j += 16)
            for (int64_t r = 0; r < count; r++) {
                const int64_t at = (i + r) * width + j;
                __m512 v = _mm512_add_ps(_mm512_loadu_ps(x + at), load_bf16(run_of(delta, i + r, j)));
                _mm512_storeu_ps(out + at, v);
                sums[r] = _mm512_add_ps(sums[r], v);
            }
        for (int64_t r = 0; r < count; r++)
            sums[r] = _mm512_set1_ps(_mm512_reduce_add_ps(sums[r]) / (float)width);
        for (int64_t j = 0; j < width; j += 16)
            for (int64_t r = 0; r < count; r++) {
                __m512 v = _mm512_sub_ps(_mm512_loadu_ps(out + (i + r) * width + j), sums[r]);
                squares[r] = _mm512_fmadd_ps(v, v, squares[r]);
            }
        for (int64_t r = 0; r < count; r++)
            squares[r] = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares[r]) / (float)width + eps));
        for (int64_t j = 0; j < width; j += 16)
            for (int64_t r = 0; r < count; r++) {
                float *to = out + (i + r) * width + j;
                __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(to), sums[r]), squares[r]);
                v = _mm512_fmadd_ps(v, _mm512_loadu_ps(weight + j), _mm512_loadu_ps(bias + j));
                _mm512_storeu_ps(to, v);
                store_bf16(run_of(rounded, i + r, j), v);
            }
    }
}

/* ---- tiles ---------------------------------------------------------------------------------------------------------- */

/* All eight tiles as 16 rows of 64 bytes: palette 1, then bytes from offset 16, rows from 48. Static, since GCC 12 does
 * not see that the instruction reads it and drops stores to a local one. */
static const uint8_t TILE_SHAPES[64] __attribute__((aligned(64))) = {
    1,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
    64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,
    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
    16, 16, 16, 16, 16, 16, 16, 16, 0,  0,  0,  0,  0,  0,  0,  0,
};

TARGET static void begin_tiles(void)
{
    _tile_loadconfig(TILE_SHAPES);
}

TARGET static void end_tiles(void)
{
    _tile_release();
}

INLINE void transpose_16x16(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Keys [n, head_dim], that begin at a row and a column, as the packed right side of q k^T: head_dim is summed over, keys (up to a multiple of 32) are columns. */
TARGET static void pack_keys(const matrix *keys, int64_t first, int64_t column, int64_t n, int64_t head_dim, bf16 *out)
{
    const int64_t padded = (n + 31) / 32 * 32;
    for (int64_t i = 0; i < padded; i += 16)
        for (int64_t j = 0; j < head_dim; j += 32) {
            __m512i rows[16];
            for (int r = 0; r < 16; r++)
                rows[r] = i + r < n ? _mm512_loadu_si512(run_of(keys, first + i + r, column + j)) : _mm512_setzero_si512();
            transpose_16x16(rows);
            for (int r = 0; r < 16; r++)
                _mm512_storeu_si512(out + i * head_dim + (j / 2 + r) * 32, rows[r]);
        }
}

/* ---- products ---------------------------------------------------------------------------------------------------
 *
 * What bounds a product is not the tile unit but how fast lines come to it. So each pair of panels of the weight, 32
 * outputs by a run of the inputs, stays in the first-level cache while all rows of a block pass by it from the second,
 * with loads that leave the first as it is. Sums over several runs wait in memory from one to the next.
 */

/* Steps of 64 bytes in a run: two panels of 16 KB of a first-level cache of 48. */
enum { RUN = 16 };

/* Sums of 32 rows by 32 outputs: how many, where those of each of four tiles begin, and the bytes of a row. */
enum { WHOLE = 32 * 32, UPPER_LEFT = 0, UPPER_RIGHT = 16, LOWER_LEFT = 512, LOWER_RIGHT = 528, SUMS_BYTES = 32 * 4 };

/* Bytes of rows that pass by the weight together: a second-level cache of 2 MB lets go of the block before slowly. */
enum { BLOCK_BYTES = 3 << 18, MOST_BLOCK_ROWS = 512 };

/* Rows [rows, width] in strips. */
TARGET void rerankd_tile(int threads, int64_t rows, int64_t width, const matrix *x, const matrix *out)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j += 32)
            _mm512_storeu_si512(run_of(out, i, j), _mm512_loadu_si512(run_of(x, i, j)));
}

/* bfloat16 values as 16-bit integers of the same order. */
INLINE __m512i ordered(__m512i x)
{
    return _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff)));
}

/* The value that `ordered` made this of. */
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

/* Rows as unsigned 8-bit integers, x = (code - zero) * step, in strips with `strip` bytes between them. Each row has a step
 * and a zero of its own, so that its whole range, lopsided or not, is used. width is a multiple of 64. */
TARGET void rerankd_quantize(int threads, int64_t rows, int64_t width, const matrix *x, uint8_t *codes, int64_t strip,
                             float *steps, float *zeros)
{
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i += ABREAST) {
        const int64_t count = rows - i < ABREAST ? rows - i : ABREAST;
        const bf16 *row[ABREAST];
        __m512i low[ABREAST], high[ABREAST];
        for (int r = 0; r < ABREAST; r++) {
            row[r] = run_of(x, r < count ? i + r : i, 0);
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
            const float step = range < FLT_MIN * 256 ? FLT_MIN * 256 : range; /* what is not a number stays */
            const float zero = rintf(-least / step);
            steps[i + r] = step;
            zeros[i + r] = zero;
            const __m512 factor = _mm512_set1_ps(1.0f / step);
            const __m512i shift = _mm512_set1_epi16((short)lrintf(zero));
            uint8_t *to = codes + (i + r) * TILE_BYTES;
            for (int64_t j = 0; j < width / 64; j++) {
                const bf16 *from = row[r] + 2 * j * x->columns;
                __m512i a = _mm512_add_epi16(rounded(_mm512_loadu_si512(from), factor), shift);
                __m512i b = _mm512_add_epi16(rounded(_mm512_loadu_si512(from + x->columns), factor), shift);
                _mm512_storeu_si512(to + j * strip, _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a, b)));
            }
        }
    }
}

/* A bfloat16 weight [outputs, inputs] as tiles read it. */
TARGET void rerankd_pack_bf16(int64_t outputs, int64_t inputs, const bf16 *weight, bf16 *packed)
{
    const matrix w = { (bf16 *)weight, inputs, 32 };
    pack_keys(&w, 0, 0, outputs, inputs, packed);
}

/* An 8-bit weight [outputs, inputs] as tiles read it: panels of 16 outputs, of runs of 4 inputs; and its rows' sums. */
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

/* THEN_GATED: silu of the first half of the outputs, times the second half. */
enum { THEN_NOTHING, THEN_GELU, THEN_GELU_TANH, THEN_GATED, THEN_PLUS };

/* These are read as bfloat16, so reciprocals good to 14 bits do; and none too small for a normal float32, which is slow. */
INLINE __m512 sigmoid_ps(__m512 x)
{
    __m512 e = exp2_ps(_mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E))));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* x * phi(x), where phi, the normal distribution, is 1/2 and an odd polynomial up to |x| = 4.5 and 0 or 1 beyond: at most
 * 6e-5 off, and 1e-5 of x beyond. Fitted by least squares. */
INLINE __m512 gelu_ps(__m512 x)
{
    const __m512 bound = _mm512_set1_ps(4.5f);
    /* The order of operands keeps what is not a number. */
    __m512 near = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), bound), _mm512_min_ps(bound, x));
    __m512 t = _mm512_mul_ps(near, near);
    __m512 p = _mm512_set1_ps(-1.9221827e-14f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(3.2338295e-11f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-3.400942e-9f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.6119016e-7f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-4.482361e-6f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(8.1702834e-5f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.0391182e-3f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(9.589973e-3f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-6.5991983e-2f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(3.987165e-1f));
    __m512 phi = _mm512_max_ps(_mm512_setzero_ps(), _mm512_fmadd_ps(near, p, _mm512_set1_ps(0.5f)));
    return _mm512_mul_ps(x, phi);
}

INLINE __m512 gelu_tanh_ps(__m512 x)
{
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(0.044715f), x);
    return _mm512_mul_ps(x, sigmoid_ps(_mm512_mul_ps(cubic, _mm512_set1_ps(1.5957691216f))));
}

/* x [rows, steps of 64 bytes] W^T + bias and what follows it. scales and what is below it are NULL for bfloat16 rows. */
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

/* Sums of up to 32 rows by 32 outputs that are still to be finished, from row `done` on. */
typedef struct { const float *sums; int64_t row, rows, left, right, done; } unfinished;

/* 16 outputs of a row, by their sums; those of 8-bit products are integers. */
INLINE __m512 output(const product *p, const float *sums, int64_t row, int64_t column, int quantized)
{
    __m512 y = _mm512_loadu_ps(sums);
    if (quantized) {
        y = _mm512_cvtepi32_ps(_mm512_castps_si512(y));
        y = _mm512_fnmadd_ps(_mm512_loadu_ps(p->sums + column), _mm512_set1_ps(p->row_zeros[row]), y);
        __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(p->scales + column), _mm512_set1_ps(p->row_steps[row]));
        return p->bias ? _mm512_fmadd_ps(y, scale, _mm512_loadu_ps(p->bias + column)) : _mm512_mul_ps(y, scale);
    }
    return p->bias ? _mm512_add_ps(y, _mm512_loadu_ps(p->bias + column)) : y;
}

INLINE __m512 follow(__m512 y, int then)
{
    if (then == THEN_GELU)
        return gelu_ps(y);
    if (then == THEN_GELU_TANH)
        return gelu_tanh_ps(y);
    return y;
}

/* Finish up to `count` rows of sums. */
INLINE void finish(const product *p, unfinished *u, int64_t count, int quantized, int then)
{
    const int64_t stop = u->done + count < u->rows ? u->done + count : u->rows;
    for (int64_t at = u->done; at < stop; at++) {
        const int64_t row = u->row + at;
        bf16 *out = run_of(&p->out, row, u->left);
        __m512 left = output(p, u->sums + 32 * at, row, u->left, quantized);
        __m512 right = output(p, u->sums + 32 * at + 16, row, u->right, quantized);
        if (then == THEN_GATED) {
            store_bf16(out, _mm512_mul_ps(_mm512_mul_ps(left, sigmoid_ps(left)), right));
            continue;
        }
        if (then == THEN_PLUS) {
            const bf16 *other = run_of(&p->other, row, u->left);
            left = _mm512_add_ps(left, load_bf16(other));
            right = _mm512_add_ps(right, load_bf16(other + 16));
        }
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(follow(right, then), follow(left, then)));
    }
    u->done = stop;
}

/* Of each kind one that is called, so that the loop of tiles keeps its registers. */
typedef void finisher(const product *, unfinished *, int64_t);
#define FINISHER(name, quantized, then)                                                                               \
    TARGET static __attribute__((noinline)) void name(const product *p, unfinished *u, int64_t count)                 \
    {                                                                                                                 \
        finish(p, u, count, quantized, then);                                                                         \
    }
FINISHER(finish_bf16, 0, THEN_NOTHING)
FINISHER(finish_bf16_gelu, 0, THEN_GELU)
FINISHER(finish_bf16_gelu_tanh, 0, THEN_GELU_TANH)
FINISHER(finish_bf16_gated, 0, THEN_GATED)
FINISHER(finish_bf16_plus, 0, THEN_PLUS)
FINISHER(finish_int8, 1, THEN_NOTHING)
FINISHER(finish_int8_gelu, 1, THEN_GELU)
FINISHER(finish_int8_gelu_tanh, 1, THEN_GELU_TANH)
FINISHER(finish_int8_gated, 1, THEN_GATED)
FINISHER(finish_int8_plus, 1, THEN_PLUS)
static finisher *const FINISHERS[2][5] = {
    { finish_bf16, finish_bf16_gelu, finish_bf16_gelu_tanh, finish_bf16_gated, finish_bf16_plus },
    { finish_int8, finish_int8_gelu, finish_int8_gelu_tanh, finish_int8_gated, finish_int8_plus },
};

/* Where two panels of the weight begin, and the outputs that they are of. */
typedef struct { const uint8_t *at[2]; int64_t left, right; } panels;

INLINE panels panels_of(const product *p, int64_t i)
{
    panels w;
    w.left = p->then == THEN_GATED ? 16 * i : 32 * i;
    w.right = p->then == THEN_GATED ? p->outputs / 2 + w.left : w.left + 16;
    w.at[0] = p->packed + w.left / 16 * p->steps * TILE;
    w.at[1] = p->packed + w.right / 16 * p->steps * TILE;
    return w;
}

#define MULTIPLY(sums, rows, panel)                                                                                   \
    do {                                                                                                              \
        if (quantized)                                                                                                \
            _tile_dpbusd(sums, rows, panel);                                                                          \
        else                                                                                                          \
            _tile_dpbf16ps(sums, rows, panel);                                                                        \
    } while (0)

/* Begin a tile's sums at 0, or at those `kept` of a run before. What it still holds of other rows is stored only now, one
 * tile at a time between products: four stores on end would let the tile unit wait for the last product to come out. */
#define BEGIN(tile, place)                                                                                            \
    do {                                                                                                              \
        _tile_stored(tile, *held + (place), SUMS_BYTES);                                                              \
        if (from)                                                                                                     \
            _tile_stream_loadd(tile, kept + (place), SUMS_BYTES);                                                     \
        else                                                                                                          \
            _tile_zero(tile);                                                                                         \
    } while (0)

/* Rows from `row` to `end` by two panels, into `sums`, 32 a row; what was before is finished meanwhile, since tile products
 * leave half of the vector unit idle. next: the panels that come after. held: where the sums go that tiles hold, which they
 * do until their next product. cold: the block's rows have not passed by before. */
INLINE void pass(const product *p, int64_t row, int64_t end, const panels *w, const panels *next, float *sums,
                 float **held, unfinished *before, finisher *finish_rows, int cold, int quantized)
{
    const int64_t runs = (p->steps + RUN - 1) / RUN, longest = (p->steps + runs - 1) / runs, groups = (end - row + 31) / 32;
    const int64_t lines = (TILE_ROWS + groups - 1) / groups;
    for (int64_t from = 0; from < p->steps; from += longest) {
        const int64_t steps = p->steps - from < longest ? p->steps - from : longest;
        const uint8_t *left = w->at[0] + from * TILE, *right = w->at[1] + from * TILE;
        const int last = from + steps == p->steps;
        const uint8_t *ahead[2] = { last ? next->at[0] : left + steps * TILE, last ? next->at[1] : right + steps * TILE };
        /* Sums of the last run are whole. They are finished during the next 32 rows, while the first-level cache has them,
         * and before those rows' sums are stored in their place. */
        const int64_t finished = (32 + steps - 1) / steps;
        int64_t fetched = 0;
        for (int64_t i = row; i < end; i += 32) {
            const uint8_t *upper = p->strips + i * TILE_BYTES + from * p->strip, *lower = upper + TILE;
            float *kept = sums + WHOLE + (i - row) * 32, *now = last ? sums : kept;
            const int both = end - i > 16;
            for (int64_t k = 0; k < steps; k++) {
                _tile_stream_loadd(4, upper + k * p->strip, TILE_BYTES);
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
                    _tile_stream_loadd(5, lower + k * p->strip, TILE_BYTES);
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
                        _mm_prefetch(upper + k * p->strip + n * TILE_BYTES, _MM_HINT_T1);
                if (before->done < before->rows)
                    finish_rows(p, before, finished);
            }
            *held = now;
            if (last)
                *before = (unfinished){ now, i, end - i < 32 ? end - i : 32, w->left, w->right, 0 };
        }
    }
}

/* How rows are cut into blocks, in groups of 32: as evenly as can be. */
typedef struct { int64_t groups, blocks; } cut;

INLINE int64_t first_group(const cut *c, int64_t block)
{
    return c->groups * block / c->blocks;
}

/* The pass, counted over all panels of the first block of rows, then of the second, and so on, that a share of the work
 * begins with; `work` is what comes before it, in groups of rows by pairs of panels. */
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

/* A thread's passes. sums: room for a block's, behind room for those that are being finished. */
INLINE void passes(const product *p, const cut *c, range *ranges, int64_t thread, int64_t crew, float *sums, int quantized)
{
    const int64_t pairs = p->outputs / 32;
    finisher *const finish_rows = FINISHERS[quantized][p->then];
    unfinished before = { sums, 0, 0, 0, 0, 0 };
    float *held = sums; /* nothing yet, but there is room */
    int64_t warm = -1;  /* the block that passed by last */
    for (int64_t i; (i = take_piece(ranges, thread, crew)) >= 0;) {
        const int64_t block = i / pairs, row = 32 * first_group(c, block), stop = 32 * first_group(c, block + 1);
        const panels now = panels_of(p, i % pairs), next = panels_of(p, (i + 1) % pairs);
        pass(p, row, stop < p->rows ? stop : p->rows, &now, &next, sums, &held, &before, finish_rows, block != warm, quantized);
        warm = block;
    }
    _tile_stored(0, held + UPPER_LEFT, SUMS_BYTES);
    _tile_stored(1, held + UPPER_RIGHT, SUMS_BYTES);
    _tile_stored(2, held + LOWER_LEFT, SUMS_BYTES);
    _tile_stored(3, held + LOWER_RIGHT, SUMS_BYTES);
    finish_rows(p, &before, 32);
}

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* A product as its operands say. outputs is a multiple of 32. */
TARGET void rerankd_product(int threads, const product *p)
{
    /* Threads share out blocks, and within a block its columns: of few rows each thread reads a part of the weight. */
    const int64_t most = clamp(BLOCK_BYTES / (p->steps * TILE_BYTES), 32, MOST_BLOCK_ROWS) / 32, pairs = p->outputs / 32;
    const int64_t groups = (p->rows + 31) / 32;
    const cut c = { groups, (groups + most - 1) / most };
    range ranges[threads];
    for (int64_t i = 0; i < threads; i++) {
        ranges[i].next = pass_at(&c, pairs, groups * pairs * i / threads);
        ranges[i].end = pass_at(&c, pairs, groups * pairs * (i + 1) / threads);
    }
#pragma omp parallel num_threads(threads)
    {
        float sums[WHOLE + MOST_BLOCK_ROWS * 32] __attribute__((aligned(64)));
        begin_tiles();
        if (p->scales)
            passes(p, &c, ranges, omp_get_thread_num(), threads, sums, 1);
        else
            passes(p, &c, ranges, omp_get_thread_num(), threads, sums, 0);
        end_tiles();
    }
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

/* The logits of 16 or 32 (m) queries for n packed keys (a multiple of 32), summed over head_dim: c [m, n].
 *
 * Packed keys lie in panels of 16 columns, as pairs of what is summed over: a tile reads 16 such pairs as they are.
 */
INLINE void logits_of(int64_t m, int64_t n, int64_t head_dim, const matrix *q, const bf16 *keys, float *c, int64_t c_stride)
{
    const size_t q_bytes = 2 * q->row, c_bytes = 4 * c_stride;
    __asm__ volatile("" ::: "memory"); /* What tiles read is stored by now; to the compiler they read nothing. */
    for (int64_t j = 0; j < n; j += 16) {
        const bf16 *panel = keys + j * head_dim;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t x = 0; x < head_dim; x += 32) {
            _tile_loadd(6, panel + 16 * x, TILE_BYTES);
            _tile_loadd(4, run_of(q, 0, x), q_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (m > 16) {
                _tile_loadd(5, run_of(q, 16, x), q_bytes);
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

/* Values [n, head_dim] as the packed right side of p v: keys (up to a multiple of 32) are summed over. */
TARGET static void pack_values(const matrix *values, int64_t first, int64_t column, int64_t n, int64_t head_dim, bf16 *out)
{
    const int64_t padded = (n + 31) / 32 * 32;
    uint16_t order[32];
    for (int i = 0; i < 16; i++) {
        order[2 * i] = (uint16_t)i;
        order[2 * i + 1] = (uint16_t)(i + 32);
    }
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < padded; i += 2)
        for (int64_t j = 0; j < head_dim; j += 32) {
            const bf16 *from = run_of(values, first + i, column + j);
            __m512i even = i < n ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            __m512i odd = i + 1 < n ? _mm512_loadu_si512(from + values->row) : _mm512_setzero_si512();
            _mm512_storeu_si512(out + j * padded + 16 * i, _mm512_permutex2var_epi16(even, low, odd));
            _mm512_storeu_si512(out + (j + 16) * padded + 16 * i, _mm512_permutex2var_epi16(even, high, odd));
        }
}

/* The lanes of 16 that lie below `end`, for the run that begins at `j`. */
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

/* out = 2^(scale * x - shift) up to `end`, 0 from there to `width`, a multiple of 32; returns the sum so far. */
INLINE __m512 exp2_over(const float *x, int64_t end, int64_t width, __m512 scale, __m512 shift, __m512 sum, bf16 *out)
{
    int64_t j = 0;
    for (; j < end; j += 32) {
        __m512 a = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(x + j), scale, shift));
        __m512 b = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(x + j + 16), scale, shift));
        if (j + 32 > end) {
            a = _mm512_maskz_mov_ps(lanes(j, end), a);
            b = _mm512_maskz_mov_ps(lanes(j + 16, end), b);
        }
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        _mm512_storeu_si512(out + j, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    for (; j < width; j += 32)
        _mm512_storeu_si512(out + j, _mm512_setzero_si512());
    return sum;
}

typedef struct { int64_t query, query_stop, shared, shared_stop, own, own_stop; } block;

/* Packed keys and values of `count` rows of one head. */
typedef struct { int64_t count; bf16 *keys, *values; } side;

/* What a thread works in. logits and weights: a row for each query, shared keys first, each side up to a multiple of 32. */
typedef struct { bf16 *queries, *weights; float *logits, *sums; } scratch;

/* Query rows that are computed together: two tiles, so that keys and values are read half as often, or one where they are
 * few, which measures faster. */
enum { QUERIES = 32, FEW_KEYS = 192 };

INLINE int64_t padded(int64_t n)
{
    return (n + 31) / 32 * 32;
}

TARGET static void pack(side *to, const matrix *keys, const matrix *values, int64_t first, int64_t stop, int64_t column,
                        int64_t head_dim)
{
    to->count = stop - first;
    pack_keys(keys, first, column, to->count, head_dim, to->keys);
    pack_values(values, first, column, to->count, head_dim, to->values);
}

/* Rows of one head that are packed next. */
typedef struct { matrix keys, values; int64_t rows; } coming;

/* Up to QUERIES query rows of one head; the last of them sees `visible` of its own keys, in a causal block the row
 * before it one key less, and so on. */
TARGET static void attend(const scratch *s, const side *shared, const side *own, int64_t rows, int64_t head_dim,
                          const matrix *queries, int64_t visible, int causal, float scale, const matrix *out,
                          const coming *next)
{
    const int64_t before = padded(shared->count), behind = padded(visible), width = before + behind;
    const int64_t height = rows > 16 ? 32 : 16;
    __m512 totals[QUERIES];
    matrix q = *queries;
    if (rows < height) { /* tiles would read past the last row */
        for (int64_t i = 0; i < height; i++)
            for (int64_t j = 0; j < head_dim; j += 32)
                _mm512_storeu_si512(s->queries + i * head_dim + j,
                                    i < rows ? _mm512_loadu_si512(run_of(&q, i, j)) : _mm512_setzero_si512());
        q = (matrix){ s->queries, head_dim, 32 };
    }
    logits_of(height, before, head_dim, &q, shared->keys, s->logits, width);
    logits_of(height, behind, head_dim, &q, own->keys, s->logits + before, width);
    /* First all maxima, then all weights: within a row each waits for what is before it. */
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
                _mm_prefetch((const char *)run_of(&next->keys, i, j), _MM_HINT_T1);
                _mm_prefetch((const char *)run_of(&next->values, i, j), _MM_HINT_T1);
            }
        bf16 *to = s->weights + i * width;
        __m512 sum = exp2_over(row, shared->count, before, factor, shifts[i], _mm512_setzero_ps(), to);
        sum = exp2_over(row + before, end, behind, factor, shifts[i], sum, to + before);
        totals[i] = sum;
    }
    memset(s->weights + rows * width, 0, (size_t)(height - rows) * width * sizeof(bf16));
    __asm__ volatile("" ::: "memory"); /* as in logits_of */
    for (int64_t j = 0; j < head_dim; j += 32) {
        const int64_t depth = padded(own->count);
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
    for (int64_t i = 0; i < rows; i++) {
        __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(totals[i]));
        for (int64_t j = 0; j < head_dim; j += 16)
            store_bf16(run_of(out, i, j), _mm512_mul_ps(_mm512_loadu_ps(s->sums + i * head_dim + j), inverse));
    }
}

static bf16 *take(char **from, int64_t bytes)
{
    bf16 *taken = (bf16 *)*from;
    *from += (bytes + 63) / 64 * 64;
    return taken;
}

/* Attention as layout.py says: q and out [rows, heads * head_dim], k and v [T, kv_heads * head_dim].
 *
 * blocks: their spans; runs [run_count + 1]: where runs of blocks with one `shared` span begin; each run of each key
 * head is a piece of work, in which the shared keys and values are packed once. Returns 0, or 1 where memory ran out.
 */
TARGET int rerankd_attention(int threads, int64_t run_count, const int64_t *runs, const block *blocks,
                             int64_t heads, int64_t kv_heads, int64_t head_dim, const matrix *q, const matrix *k,
                             const matrix *v, int causal, float scale, const matrix *out)
{
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
        begin_tiles();
        for (int64_t piece; (piece = take_piece(ranges, omp_get_thread_num(), threads)) >= 0;) {
            const int64_t run = piece / kv_heads, kv = piece % kv_heads;
            const block *first = blocks + runs[run];
            pack(&shared, k, v, first->shared, first->shared_stop, kv * head_dim, head_dim);
            for (const block *b = first; b < blocks + runs[run + 1]; b++) {
                const int64_t count = b->own_stop - b->own, queries = b->query_stop - b->query;
                pack(&own, k, v, b->own, b->own_stop, kv * head_dim, head_dim);
                const int64_t most = padded(shared.count) + padded(count) <= FEW_KEYS ? QUERIES / 2 : QUERIES;
                for (int64_t h = kv * repeat; h < (kv + 1) * repeat; h++)
                    for (int64_t i = 0; i < queries; i += most) {
                        const int64_t rows = queries - i < most ? queries - i : most;
                        const int64_t visible = causal ? count - (queries - i - rows) : count;
                        const matrix asking = shifted(q, b->query + i, h * head_dim), to = shifted(out, b->query + i, h * head_dim);
                        coming next = { .rows = 0 };
                        if (h == kv * repeat && b + 1 < blocks + runs[run + 1])
                            next = (coming){ shifted(k, b[1].own + i, kv * head_dim), shifted(v, b[1].own + i, kv * head_dim),
                                             b[1].own_stop - b[1].own - i };
                        attend(&s, &shared, &own, rows, head_dim, &asking, visible, causal, scale, &to, &next);
                    }
            }
        }
        end_tiles();
    }
    free(memory);
    return 0;
}
#else
int rerankd_features(void) { return 0; }
#endif

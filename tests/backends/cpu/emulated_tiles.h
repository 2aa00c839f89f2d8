/* AMX's tiles in plain C, for tests on a processor without AMX: included before the kernels' own files, this header replaces
 * the intrinsics. Semantics are those of Intel's manual for 16 rows of 64 bytes. */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static __thread uint8_t emulated_tiles[8][16][64];
static __thread int emulated_on;

static inline void emulated_config(const uint8_t *shapes)
{
    int right = shapes[0] == 1;
    for (int i = 0; i < 8; i++)
        right &= shapes[16 + 2 * i] == 64 && shapes[17 + 2 * i] == 0 && shapes[48 + i] == 16;
    if (!right)
        abort();
    memset(emulated_tiles, 0, sizeof emulated_tiles);
    emulated_on = 1;
}

/* A processor would refuse with a signal. */
static inline void emulated_check(void)
{
    if (!emulated_on)
        abort();
}

static inline void emulated_load(int tile, const void *base, size_t stride)
{
    emulated_check();
    for (int i = 0; i < 16; i++)
        memcpy(emulated_tiles[tile][i], (const char *)base + i * stride, 64);
}

static inline void emulated_store(int tile, void *base, size_t stride)
{
    emulated_check();
    for (int i = 0; i < 16; i++)
        memcpy((char *)base + i * stride, emulated_tiles[tile][i], 64);
}

static inline float emulated_bf16(const uint8_t *from)
{
    const uint32_t bits = (uint32_t)(from[0] | from[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void emulated_dpbf16ps(int sums, int rows, int panel)
{
    emulated_check();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float sum;
            memcpy(&sum, emulated_tiles[sums][m] + 4 * n, 4);
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 4; j += 2)
                    sum += emulated_bf16(emulated_tiles[rows][m] + 4 * k + j)
                           * emulated_bf16(emulated_tiles[panel][k] + 4 * n + j);
            memcpy(emulated_tiles[sums][m] + 4 * n, &sum, 4);
        }
}

static inline void emulated_dpbusd(int sums, int rows, int panel)
{
    emulated_check();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            int32_t sum;
            memcpy(&sum, emulated_tiles[sums][m] + 4 * n, 4);
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 4; j++)
                    sum += emulated_tiles[rows][m][4 * k + j] * (int8_t)emulated_tiles[panel][k][4 * n + j];
            memcpy(emulated_tiles[sums][m] + 4 * n, &sum, 4);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig(shapes) emulated_config(shapes)
#define _tile_release() (emulated_on = 0)
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile])
#define _tile_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_store(tile, base, stride)
#define _tile_dpbf16ps(sums, rows, panel) emulated_dpbf16ps(sums, rows, panel)
#define _tile_dpbusd(sums, rows, panel) emulated_dpbusd(sums, rows, panel)

/* GEMMs by AMX tiles.
 *
 * A GEMM by tiles is bound by loads, not by the tile unit. So a pair of panels of the weight, 32 outputs by a K block of the
 * inputs, stays in the first-level cache, while all rows of a row block are loaded from the second-level cache with streaming
 * loads, which leave the first-level cache alone. Sums over several K blocks wait in memory in between.
 */
#ifndef RERANKD_GEMM_TILES_H
#define RERANKD_GEMM_TILES_H

#include "gemm.h"
#include "tiles.h"

/* Steps of 64 bytes in a K block: two panels take 32 KB of a first-level cache of 48 KB. */
enum { K_BLOCK = 16 };

/* Sums of 32 rows by 32 outputs: their number, the first of each of four tiles, and the bytes of a row. */
enum { WHOLE = 32 * 32, UPPER_LEFT = 0, UPPER_RIGHT = 16, LOWER_LEFT = 512, LOWER_RIGHT = 528, SUMS_BYTES = 32 * 4 };

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
INLINE void passes_by_tiles(const gemm *p, const cut *c, const team *t, int64_t thread, float *sums, int quantized)
{
    const int64_t pairs = p->outputs / 32;
    epilogue_function *const run_epilogue = EPILOGUES[quantized][p->epilogue];
    pending_sums before = { sums, 0, 0, 0, 0, 0 };
    float *held = sums; /* the tiles hold nothing yet; the first stores go to unused memory */
    int64_t warm = -1;  /* the row block of the last pass */
    for (int64_t i; (i = take_piece(t, thread)) >= 0;) {
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

TARGET static void share_gemm_by_tiles(team *t, const void *o)
{
    share_passes(t, o, 1);
}

TARGET static void work_gemm_by_tiles(const team *t, int64_t thread, const void *o)
{
    const gemm *p = o;
    const cut c = cut_of(p, t->threads, 1);
    float sums[WHOLE + MOST_BLOCK_ROWS * 32] __attribute__((aligned(64)));
    begin_tiles();
    if (p->scales)
        passes_by_tiles(p, &c, t, thread, sums, 1);
    else
        passes_by_tiles(p, &c, t, thread, sums, 0);
    end_tiles();
}

#endif

/* AMX's tile registers, configured and released. */
#ifndef RERANKD_TILES_H
#define RERANKD_TILES_H

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

#endif

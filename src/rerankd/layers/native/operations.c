/* Operations one after another by one call. */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"

enum { RMS_NORM, NORM_ROTATE, ADD_LAYER_NORM, TILE_ROWS_OF, CHOOSE, QUANTIZE, PRODUCT, ATTENTION };

/* operations: of each its number, then its operands. Returns 0, or 1 where memory ran out for one, and it ends there. */
int rerankd_run(int threads, int tiles, int64_t bytes, const char *operations)
{
    const char *at = operations, *end = operations + bytes;
    while (at < end) {
        const int64_t number = *(const int64_t *)at;
        const void *o = at += sizeof number;
        switch (number) {
        case RMS_NORM:
            rerankd_rms_norm(threads, o);
            at += sizeof(rms_norm);
            break;
        case NORM_ROTATE:
            rerankd_norm_rotate(threads, o);
            at += sizeof(norm_rotate);
            break;
        case ADD_LAYER_NORM:
            rerankd_add_layer_norm(threads, o);
            at += sizeof(add_layer_norm);
            break;
        case TILE_ROWS_OF:
            rerankd_tile(threads, o);
            at += sizeof(tile);
            break;
        case CHOOSE:
            rerankd_choose(threads, o);
            at += sizeof(choose);
            break;
        case QUANTIZE:
            rerankd_quantize(threads, o);
            at += sizeof(quantize);
            break;
        case PRODUCT:
            rerankd_product(threads, tiles, o);
            at += sizeof(product);
            break;
        case ATTENTION:
            if (rerankd_attention(threads, tiles, o))
                return 1;
            at += sizeof(attention);
            break;
        }
    }
    return 0;
}
#endif

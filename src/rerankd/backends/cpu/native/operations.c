/* Operations one after another by one call. */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"

#define NUMBER(number, type) number,
enum { OPERATIONS(NUMBER) OPERATION_COUNT };

#define BYTES(number, type) sizeof(type),
static const int64_t OPERAND_BYTES[] = { OPERATIONS(BYTES) };

#define NAMED(number, type) { #type, sizeof(type) },
static const agreed AGREED[] = {
    { "abi", RERANKD_ABI },      { "matrix", sizeof(matrix) }, { "chosen", sizeof(chosen) },
    { "block", sizeof(block) },  { "then", THEN_COUNT },       OPERATIONS(NAMED)
};

/* An entry of the above; NULL behind the last. */
const agreed *rerankd_agreed(int64_t entry)
{
    return entry >= 0 && entry < (int64_t)(sizeof AGREED / sizeof *AGREED) ? AGREED + entry : NULL;
}

/* Whether all operations can be read: before the first is computed, since each tells where the next begins. */
static int check(const char *at, const char *end)
{
    while (at < end) {
        int64_t number;
        if (end - at < (int64_t)sizeof number)
            return CUT_SHORT;
        memcpy(&number, at, sizeof number);
        at += sizeof number;
        if (number < 0 || number >= OPERATION_COUNT)
            return UNKNOWN_OPERATION;
        if (end - at < OPERAND_BYTES[number])
            return CUT_SHORT;
        if (number == PRODUCT && (uint64_t)((const product *)at)->then >= THEN_COUNT)
            return UNKNOWN_OPERATION;
        at += OPERAND_BYTES[number];
    }
    return COMPUTED;
}

/* operations: of each its number, then its operands. Returns COMPUTED; NO_MEMORY where memory ran out for one, and it ends
 * there; or, with nothing computed, UNKNOWN_OPERATION or CUT_SHORT. */
int rerankd_run(int threads, int tiles, int64_t bytes, const char *operations)
{
    const char *at = operations, *end = operations + bytes;
    const int problem = check(at, end);
    if (problem)
        return problem;
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
                return NO_MEMORY;
            at += sizeof(attention);
            break;
        }
    }
    return COMPUTED;
}
#endif

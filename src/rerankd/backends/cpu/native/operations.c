/* The interpreter of command lists: one call computes one operation after another. */
#if defined(__x86_64__) && defined(__linux__)
#include "operations.h"

#define NUMBER(number, type) number,
enum { OPERATIONS(NUMBER) OPERATION_COUNT };

#define BYTES(number, type) sizeof(type),
static const int64_t OPERAND_BYTES[] = { OPERATIONS(BYTES) };

#define NAMED(number, type) { #type, sizeof(type) },
static const agreed AGREED[] = {
    { "abi", RERANKD_ABI },      { "matrix", sizeof(matrix) },      { "lookup", sizeof(lookup) },
    { "block", sizeof(block) },  { "epilogue", EPILOGUE_COUNT },   OPERATIONS(NAMED)
};

/* An entry of the above; NULL behind the last. */
const agreed *rerankd_agreed(int64_t entry)
{
    return entry >= 0 && entry < (int64_t)(sizeof AGREED / sizeof *AGREED) ? AGREED + entry : NULL;
}

/* COMPUTED, or why the list cannot be read. The whole list is checked before the first operation is computed, since each
 * operation's number says where the next one begins. */
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
        if (number == GEMM && (uint64_t)((const gemm *)at)->epilogue >= EPILOGUE_COUNT)
            return UNKNOWN_OPERATION;
        at += OPERAND_BYTES[number];
    }
    return COMPUTED;
}

/* Compute a command list: of each operation its number, then its operands. Returns COMPUTED; NO_MEMORY where memory ran out for
 * an operation, and that one and those after it are not computed; or, with nothing computed, UNKNOWN_OPERATION or CUT_SHORT. */
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
        case NORM_ROPE:
            rerankd_norm_rope(threads, o);
            at += sizeof(norm_rope);
            break;
        case ADD_LAYER_NORM:
            rerankd_add_layer_norm(threads, o);
            at += sizeof(add_layer_norm);
            break;
        case TO_BLOCKED:
            rerankd_to_blocked(threads, o);
            at += sizeof(to_blocked);
            break;
        case INDEX_SELECT:
            rerankd_index_select(threads, o);
            at += sizeof(index_select);
            break;
        case QUANTIZE:
            rerankd_quantize(threads, o);
            at += sizeof(quantize);
            break;
        case GEMM:
            rerankd_gemm(threads, tiles, o);
            at += sizeof(gemm);
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

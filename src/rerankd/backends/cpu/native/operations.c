/* The interpreter of command lists: one call computes one operation after another. */
#include "compilers.h"
#include "operations.h"
#include "waiting.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define BYTES(number, type) sizeof(type),
static const int64_t OPERAND_BYTES[] = { OPERATIONS(BYTES) };

#define NAMED(number, type) { #type, sizeof(type) },
static const agreed AGREED[] = {
    { "abi", RERANKD_ABI },      { "matrix", sizeof(matrix) },    { "lookup", sizeof(lookup) },
    { "block", sizeof(block) },  { "epilogue", EPILOGUE_COUNT }, OPERATIONS(NAMED)
};

#define DECLARED(number, name) extern __attribute__((visibility("hidden"))) const unit rerankd_##name;
UNITS(DECLARED)

static const unit *const UNIT_TABLES[] = {
#if COMPILES_AVX2
    [AVX2] = &rerankd_avx2,
#endif
#if COMPILES_AVXVNNI
    [AVXVNNI] = &rerankd_avxvnni,
#endif
#if COMPILES_AVX512
    [AVX512] = &rerankd_avx512,
#endif
#if COMPILES_AVX512_VNNI
    [AVX512_VNNI] = &rerankd_avx512_vnni,
#endif
#if COMPILES_AVX512_BF16
    [AVX512_BF16] = &rerankd_avx512_bf16,
#endif
#if COMPILES_AMX
    [AMX] = &rerankd_amx,
#endif
#if COMPILES_NEON
    [NEON] = &rerankd_neon,
#endif
#if COMPILES_NEON_DOTPROD
    [NEON_DOTPROD] = &rerankd_neon_dotprod,
#endif
#if COMPILES_NEON_I8MM
    [NEON_I8MM] = &rerankd_neon_i8mm,
#endif
#if COMPILES_NEON_BF16
    [NEON_BF16] = &rerankd_neon_bf16,
#endif
    [UNIT_COUNT] = NULL,
};

/* An entry of AGREED; NULL behind the last. */
const agreed *rerankd_agreed(int64_t entry)
{
    return entry >= 0 && entry < (int64_t)(sizeof AGREED / sizeof *AGREED) ? AGREED + entry : NULL;
}

/* The largest magnitude of a unit's 8-bit weights; 0 where the compiler did not know the unit's instructions. */
int64_t rerankd_largest_weight(int number)
{
    return UNIT_TABLES[number] ? UNIT_TABLES[number]->largest_weight : 0;
}

/* The largest sum of a unit's 8-bit weights, and the largest magnitude of its 16-bit codes; see `unit`. */
int64_t rerankd_largest_sum(int number)
{
    return UNIT_TABLES[number]->largest_sum;
}

int64_t rerankd_largest_half(int number)
{
    return UNIT_TABLES[number]->largest_half;
}

void rerankd_pack(int number, int64_t outputs, int64_t inputs, const void *weight, void *packed)
{
    UNIT_TABLES[number]->pack(outputs, inputs, weight, packed);
}

void rerankd_pack_int8(int number, int64_t outputs, int64_t inputs, const int8_t *weight, void *packed, float *sums)
{
    UNIT_TABLES[number]->pack_int8(outputs, inputs, weight, packed, sums);
}

static int within_tables(const embed_layer_norm *o)
{
    for (const lookup *table = o->tables; table < o->tables + 3; table++)
        for (int64_t i = 0; table->indices && i < o->rows; i++)
            if (table->indices[i] < 0 || table->indices[i] >= table->count)
                return 0;
    return 1;
}

/* COMPUTED, or why the list cannot be computed. The whole list is checked before the first operation is computed, since each
 * operation's number says where the next one begins. bytes: of scratch memory that a thread needs */
static int check(const unit *u, const char *at, const char *end, int64_t *bytes)
{
    *bytes = 0;
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
        if (!u->largest_half && ((number == GEMM && ((const gemm *)at)->halves) ||
                                 (number == QUANTIZE && ((const quantize *)at)->halves)))
            return UNKNOWN_OPERATION;
        if (number == EMBED_LAYER_NORM && !within_tables((const embed_layer_norm *)at))
            return OUTSIDE_OF_TABLE;
        if (number == ATTENTION) {
            const int64_t needed = u->attention_bytes((const attention *)at);
            *bytes = needed > *bytes ? needed : *bytes;
        }
        at += OPERAND_BYTES[number];
    }
    return COMPUTED;
}

static inline int64_t operation_at(const char *at)
{
    return *(const int64_t *)at;
}

static inline const char *operands_at(const char *at)
{
    return at + sizeof(int64_t);
}

/* Compute a command list: of each operation its number, then its operands. Returns COMPUTED; or, with nothing computed, why not.
 *
 * The threads of one parallel region compute all operations. The first one is shared out before: a thread that has to be woken up
 * finds the others at work. Between two the threads wait for each other (waiting.h), and the last one to arrive shares out the next
 * operation. */
int rerankd_run(int threads, int number, int64_t bytes, const char *operations)
{
    const unit *const u = UNIT_TABLES[number];
    const char *const end = operations + bytes;
    int64_t scratch_bytes;
    const int problem = check(u, operations, end, &scratch_bytes);
    if (problem || !bytes)
        return problem;
    char *scratch = NULL;
    if (scratch_bytes && !(scratch = aligned_alloc(64, (size_t)(scratch_bytes * threads))))
        return NO_MEMORY;
    range ranges[threads];
    team t = { threads, ranges, scratch, scratch_bytes };
    meeting m = { 0 };
    u->functions[operation_at(operations)].share(&t, operands_at(operations));
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), present = omp_get_num_threads();
        for (const char *at = operations; at < end; at = operands_at(at) + OPERAND_BYTES[operation_at(at)]) {
            const function *f = u->functions + operation_at(at);
            if (at > operations && arrive(&m, present)) {
                f->share(&t, operands_at(at));
                release(&m);
            }
            f->work(&t, thread, operands_at(at));
        }
    }
    free(scratch);
    return COMPUTED;
}

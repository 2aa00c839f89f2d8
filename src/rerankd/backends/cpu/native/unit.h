/* The operations of a unit, in a table that has its name. Included once, behind all that the unit defines. */
#include "attention.h"
#include "gemm.h"
#include "rows.h"

#define FUNCTION(number, type) [number] = { NAMED_FOR(share, type), NAMED_FOR(work, type) },
#define TABLE(name)                                                                                                   \
    __attribute__((visibility("hidden"))) const unit NAMED_FOR(rerankd, name) = {                                    \
        .functions = { OPERATIONS(FUNCTION) },                                                                        \
        .attention_bytes = attention_bytes,                                                                           \
        .pack = pack_weight,                                                                                          \
        .pack_int8 = pack_int8_weight,                                                                                \
        .largest_weight = LARGEST_WEIGHT,                                                                             \
        .largest_sum = LARGEST_SUM,                                                                                   \
        .largest_half = LARGEST_HALF,                                                                                 \
    }

/* bfloat16 rows by ARM's BF16, and 8-bit ones by products of matrices of two rows. */
#include "compilers.h"
#if COMPILES_NEON_BF16
#define ARCHITECTURE "arch=armv8.2-a+dotprod+i8mm+bf16"
#define FEATURES "dotprod,i8mm,bf16"
#include "neon.h"
#include "bfloat16.h"
#include "codes_i8mm.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(neon_bf16);
#endif

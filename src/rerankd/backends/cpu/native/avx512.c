/* float32 rows by AVX-512. */
#include "compilers.h"
#if COMPILES_AVX512
#define FEATURES ""
#include "avx512.h"
#include "float32.h"
#include "codes_x86.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(avx512);
#endif

/* float32 rows by AVX2 with FMA. */
#include "compilers.h"
#if COMPILES_AVX2
#define FEATURES ""
#include "avx2.h"
#include "float32.h"
#include "codes_x86.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(avx2);
#endif

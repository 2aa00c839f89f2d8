/* float32 rows by AVX2 with FMA, and codes of 8 and 16 bits. */
#include "compilers.h"
#if COMPILES_AVX2
#define FEATURES ""
#define ADD_PRODUCTS_OF_HALVES(sums, row, line) _mm256_add_epi32(sums, _mm256_madd_epi16(row, line))
#include "avx2.h"
#include "float32.h"
#include "codes_x86.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(avx2);
#endif

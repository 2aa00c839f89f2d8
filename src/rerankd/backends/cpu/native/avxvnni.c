/* float32 rows by AVX2 with FMA, and codes of 8 and 16 bits by AVX-VNNI. */
#include "compilers.h"
#if COMPILES_AVXVNNI
#define FEATURES ",avxvnni"
#define DOT_PRODUCTS_OF_BYTES _mm256_dpbusd_avx_epi32
#define ADD_PRODUCTS_OF_HALVES _mm256_dpwssd_avx_epi32
#include "avx2.h"
#include "float32.h"
#include "codes_x86.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(avxvnni);
#endif

/* float32 rows by AVX-512, and codes of 8 and 16 bits by AVX512-VNNI. */
#include "compilers.h"
#if COMPILES_AVX512_VNNI
#define FEATURES ",avx512vnni"
#define DOT_PRODUCTS_OF_BYTES _mm512_dpbusd_epi32
#define ADD_PRODUCTS_OF_HALVES _mm512_dpwssd_epi32
#include "avx512.h"
#include "float32.h"
#include "codes_x86.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(avx512_vnni);
#endif

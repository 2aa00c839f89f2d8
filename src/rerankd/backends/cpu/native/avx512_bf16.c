/* bfloat16 rows and 8-bit ones by AVX512-BF16 and AVX512-VNNI, and by AMX tiles. Code runs on tiles only in the table of AMX. */
#include "compilers.h"
#if COMPILES_AVX512_BF16
#if COMPILES_AMX
#define FEATURES ",amx-tile,amx-bf16,amx-int8,avx512bf16,avx512vnni"
#else
#define FEATURES ",avx512bf16,avx512vnni"
#endif
#define DOT_PRODUCTS_OF_BYTES _mm512_dpbusd_epi32
#include "avx512.h"
#include "bfloat16.h"
#include "codes_x86.h"
#include "quantize_bfloat16.h"
#include "unit.h"

TABLE(avx512_bf16);

#if COMPILES_AMX
#include "attention_tiles.h"
#include "gemm_tiles.h"
#define share_gemm share_gemm_by_tiles
#define work_gemm work_gemm_by_tiles
#define work_attention work_attention_by_tiles

TABLE(amx);
#endif
#endif

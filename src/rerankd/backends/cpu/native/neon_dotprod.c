/* float32 rows by NEON, and 8-bit ones by its dot products. */
#include "compilers.h"
#if COMPILES_NEON_DOTPROD
#define ARCHITECTURE "arch=armv8.2-a+dotprod"
#define FEATURES "dotprod"
#define HAS_DOT_PRODUCTS 1
#include "neon.h"
#include "float32.h"
#include "codes_neon.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(neon_dotprod);
#endif

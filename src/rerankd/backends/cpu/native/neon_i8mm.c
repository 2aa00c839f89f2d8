/* float32 rows by NEON, and 8-bit ones by products of matrices of two rows. */
#include "compilers.h"
#if COMPILES_NEON_I8MM
#define ARCHITECTURE "arch=armv8.2-a+dotprod+i8mm"
#define FEATURES "dotprod,i8mm"
#include "neon.h"
#include "float32.h"
#include "codes_i8mm.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(neon_i8mm);
#endif

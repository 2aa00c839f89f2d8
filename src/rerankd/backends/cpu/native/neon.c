/* float32 rows by NEON, and 8-bit ones without an instruction for dot products. */
#include "compilers.h"
#if COMPILES_NEON
#define ARCHITECTURE "arch=armv8-a"
#define FEATURES "neon"
#include "neon.h"
#include "float32.h"
#include "codes_neon.h"
#include "quantize_float32.h"
#include "unit.h"

TABLE(neon);
#endif

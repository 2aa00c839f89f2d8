/* The units that a compiler knows the instructions of, on the system that it compiles for. */
#ifndef RERANKD_COMPILERS_H
#define RERANKD_COMPILERS_H

#if defined(__clang__)
#define KNOWS(gcc, clang) (__clang_major__ >= (clang))
#else
#define KNOWS(gcc, clang) (__GNUC__ >= (gcc))
#endif

#if defined(__x86_64__) && defined(__linux__)
#define COMPILES(gcc, clang) KNOWS(gcc, clang)
#else
#define COMPILES(gcc, clang) 0
#endif

#if defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
#define COMPILES_FOR_ARM(gcc, clang) KNOWS(gcc, clang)
#else
#define COMPILES_FOR_ARM(gcc, clang) 0
#endif

#define COMPILES_AVX2 COMPILES(8, 8)
#define COMPILES_AVXVNNI COMPILES(11, 12)
#define COMPILES_AVX512 COMPILES(8, 8)
#define COMPILES_AVX512_VNNI COMPILES(8, 8)
#define COMPILES_AVX512_BF16 COMPILES(10, 9)
#define COMPILES_AMX COMPILES(11, 12)
#define COMPILES_NEON COMPILES_FOR_ARM(8, 12)
#define COMPILES_NEON_DOTPROD COMPILES_FOR_ARM(8, 17)
#define COMPILES_NEON_I8MM COMPILES_FOR_ARM(10, 17)
#define COMPILES_NEON_BF16 COMPILES_FOR_ARM(10, 17)

#endif

/* The units that a compiler knows the instructions of, on the system that it compiles for. */
#ifndef RERANKD_COMPILERS_H
#define RERANKD_COMPILERS_H

#if defined(__x86_64__) && defined(__linux__)
#if defined(__clang__)
#define COMPILES(gcc, clang) (__clang_major__ >= (clang))
#else
#define COMPILES(gcc, clang) (__GNUC__ >= (gcc))
#endif
#else
#define COMPILES(gcc, clang) 0
#endif

#define COMPILES_AVX2 COMPILES(8, 8)
#define COMPILES_AVXVNNI COMPILES(11, 12)
#define COMPILES_AVX512 COMPILES(8, 8)
#define COMPILES_AVX512_VNNI COMPILES(8, 8)
#define COMPILES_AVX512_BF16 COMPILES(10, 9)
#define COMPILES_AMX COMPILES(11, 12)

#endif

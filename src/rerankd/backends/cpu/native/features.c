/* The units that this processor has the instructions of. */
#include "compilers.h"
#include "operations.h"

#if COMPILES_AVX2
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512vl");
}

/* Bit `bit` of a register, 0 for EAX to 3 for EDX, of leaf 7. */
static int leaf_7(unsigned subleaf, int which, int bit)
{
    unsigned registers[4];
    return __get_cpuid_count(7, subleaf, registers, registers + 1, registers + 2, registers + 3)
           && registers[which] >> bit & 1;
}

/* Whether the processor runs a unit, and the system saves its registers (which the compiler's own check of AVX includes). */
int rerankd_runs(int number)
{
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    switch (number) {
    case AVX2:
        return avx2;
    case AVXVNNI:
        return avx2 && leaf_7(1, 0, 4);
    case AVX512:
        return avx2 && has_avx512();
    case AVX512_VNNI:
        return avx2 && has_avx512() && __builtin_cpu_supports("avx512vnni");
    case AVX512_BF16:
        return rerankd_runs(AVX512_VNNI) && leaf_7(1, 0, 5);
    case AMX:
        /* AMX-BF16, AMX-TILE and AMX-INT8; Linux hands out tile registers (feature 18) on request. */
        return rerankd_runs(AVX512_BF16) && leaf_7(0, 3, 22) && leaf_7(0, 3, 24) && leaf_7(0, 3, 25)
               && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    }
    return 0;
}
#elif COMPILES_NEON && defined(__linux__)
#include <sys/auxv.h>

/* Whether the processor runs a unit: the bits of <asm/hwcap.h>, which older systems lack names for. */
int rerankd_runs(int number)
{
    switch (number) {
    case NEON:
        return 1;
    case NEON_DOTPROD:
        return getauxval(AT_HWCAP) >> 20 & 1;
    case NEON_I8MM:
        return rerankd_runs(NEON_DOTPROD) && getauxval(AT_HWCAP2) >> 13 & 1;
    case NEON_BF16:
        return rerankd_runs(NEON_I8MM) && getauxval(AT_HWCAP2) >> 14 & 1;
    }
    return 0;
}
#elif COMPILES_NEON
#include <sys/sysctl.h>

static int has(const char *feature)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, NULL, 0) == 0 && value;
}

/* Whether the processor runs a unit, on macOS. */
int rerankd_runs(int number)
{
    switch (number) {
    case NEON:
        return 1;
    case NEON_DOTPROD:
        return has("hw.optional.arm.FEAT_DotProd");
    case NEON_I8MM:
        return rerankd_runs(NEON_DOTPROD) && has("hw.optional.arm.FEAT_I8MM");
    case NEON_BF16:
        return rerankd_runs(NEON_I8MM) && has("hw.optional.arm.FEAT_BF16");
    }
    return 0;
}
#else
int rerankd_runs(int number)
{
    (void)number;
    return 0;
}
#endif

#ifndef RERANKD_SOURCES
#define RERANKD_SOURCES ""
#endif

/* The digest of the sources of this library, as setup.py computed it; empty where setup.py did not compile the library. */
const char *rerankd_sources(void)
{
    return RERANKD_SOURCES;
}

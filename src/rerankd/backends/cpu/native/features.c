/* The instruction sets that the kernels can use on this processor, as a sum; 0 where the kernels cannot run. */
enum { HAS_VECTORS = 1, HAS_TILES = 2 };

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

int rerankd_features(void)
{
    unsigned a, b, c, d;
    /* Leaf 7.1 EAX bit 5 is AVX512-BF16; torch's own check of AVX512 includes that the system saves the registers. */
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")
        || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni")
        || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5)))
        return 0;
    int found = HAS_VECTORS;
    /* Leaf 7.0 EDX bits 22, 24 and 25 are AMX-BF16, AMX-TILE and AMX-INT8; Linux hands out tile registers
     * (feature 18) on request. */
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22)) && (d & (1u << 24)) && (d & (1u << 25))
        && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0)
        found |= HAS_TILES;
    return found;
}
#else
int rerankd_features(void) { return 0; }
#endif

#ifndef RERANKD_SOURCES
#define RERANKD_SOURCES ""
#endif

/* The digest of the sources of this library, as setup.py computed it; empty where setup.py did not compile the library. */
const char *rerankd_sources(void) { return RERANKD_SOURCES; }

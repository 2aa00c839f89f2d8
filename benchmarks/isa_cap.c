/* Answers the instruction CPUID without the features above a cap.

   Preloaded (LD_PRELOAD) into a program, with ISA_CAP=avx2, avx512 or avx512_vnni. Linux lets a process have CPUID trap
   (CPUID faulting, arch_prctl(2)); threads and children inherit it. Engines that choose their kernels by CPUID then choose as
   on an older processor. The C library has chosen its memcpy before that. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012

enum cap { AVX2, AVX512, AVX512_VNNI };
static enum cap cap;
static struct sigaction before;

static void allow(int allowed) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

/* The bits are those of Intel's manual, volume 2A, CPUID. */
static void mask(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    uint32_t *eax = &r[0], *ebx = &r[1], *ecx = &r[2], *edx = &r[3];
    if (leaf == 7 && sub == 0) {
        *edx &= ~(1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8 */
        if (cap < AVX512_VNNI)
            *ecx &= ~(1u << 11); /* AVX512-VNNI */
        if (cap < AVX512) {
            *ebx &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
            *ecx &= ~(1u << 1 | 1u << 6 | 1u << 12 | 1u << 14);
            *edx &= ~(1u << 2 | 1u << 3 | 1u << 8);
        }
    } else if (leaf == 7 && sub == 1) {
        *eax &= ~(1u << 5 | 1u << 21 | 1u << 23); /* AVX512-BF16, AMX-FP16, AVX-IFMA */
        *edx &= ~(1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19);
        if (cap < AVX512_VNNI)
            *eax &= ~(1u << 4); /* AVX-VNNI */
    } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        memset(r, 0, 16);
    }
}

static void trapped(int number, siginfo_t *info, void *context)
{
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)g[REG_RIP];
    if (info->si_code == SI_KERNEL && at[0] == 0x0f && at[1] == 0xa2) {
        uint32_t leaf = (uint32_t)g[REG_RAX], sub = (uint32_t)g[REG_RCX], r[4];
        allow(1);
        __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
        allow(0);
        mask(leaf, sub, r);
        g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
        g[REG_RIP] += 2;
        return;
    }
    sigaction(number, &before, NULL);
}

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("ISA_CAP");
    if (!name)
        return;
    cap = !strcmp(name, "avx2") ? AVX2 : !strcmp(name, "avx512") ? AVX512 : AVX512_VNNI;
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    if (sigaction(SIGSEGV, &action, &before) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "ISA_CAP: this processor or kernel has no CPUID faulting.\n");
        _exit(3);
    }
}

/* Products whose operands never leave the registers: as fast as the vector unit multiplies. */
#include <immintrin.h>
#include <stdint.h>

/* 24 sums at a time: each waits a few cycles for its own last product, and there are two units at most. */
#define SUMS 24

#define LOOP(name, instruction)                                                                     \
    void name(int threads, int64_t rounds)                                                          \
    {                                                                                               \
        _Pragma("omp parallel num_threads(threads)")                                                \
        {                                                                                           \
            __m512i x = _mm512_setzero_si512(), sums[SUMS];                                         \
            _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; i++)                                 \
                sums[i] = x;                                                                        \
            for (int64_t round = 0; round < rounds; round++)                                        \
                _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; i++)                             \
                    __asm__ volatile(instruction " %1, %1, %0" : "+v"(sums[i]) : "v"(x));           \
        }                                                                                           \
    }

LOOP(bfloat16, "vdpbf16ps")
LOOP(int8, "vpdpbusd")

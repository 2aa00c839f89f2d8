/* Threads that wait for each other: they spin for as long as waking one up takes, and then sleep.
 *
 * A thread that spins for longer takes time from the very thread that it waits for, where other processes or a quota leave fewer
 * cores than there are threads.
 */
#ifndef RERANKD_WAITING_H
#define RERANKD_WAITING_H

#include <stdint.h>
#include <time.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

/* Nanoseconds before a thread sleeps, and loads between two looks at the clock. */
enum { SPIN_NANOSECONDS = 50000, LOADS = 64 };

/* arrived: threads at the present meeting; round: meetings that ended; sleeping: threads that may have to be woken up */
typedef struct {
    int64_t arrived __attribute__((aligned(64)));
    int32_t round __attribute__((aligned(64)));
    int32_t sleeping;
} meeting;

static inline void pause_briefly(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* waits for some ten cycles; `yield` waits for none on most processors */
#endif
}

static inline int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_through(meeting *m, int32_t round)
{
#ifdef __linux__
    __atomic_fetch_add(&m->sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&m->round, __ATOMIC_SEQ_CST) == round)
        syscall(SYS_futex, &m->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
    __atomic_fetch_sub(&m->sleeping, 1, __ATOMIC_RELAXED);
#else
    while (__atomic_load_n(&m->round, __ATOMIC_ACQUIRE) == round)
        sched_yield();
#endif
}

/* Wait until `threads` threads have come. Returns 1 to the last of them, which calls `release`, and 0 to the others then. */
static int arrive(meeting *m, int64_t threads)
{
    const int32_t round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == threads)
        return 1;
    for (const int64_t start = nanoseconds(); nanoseconds() - start < SPIN_NANOSECONDS;)
        for (int i = 0; i < LOADS; i++) {
            if (__atomic_load_n(&m->round, __ATOMIC_ACQUIRE) != round)
                return 0;
            pause_briefly();
        }
    sleep_through(m, round);
    return 0;
}

/* End the meeting. */
static void release(meeting *m)
{
    m->arrived = 0;
    __atomic_add_fetch(&m->round, 1, __ATOMIC_SEQ_CST);
#ifdef __linux__
    if (__atomic_load_n(&m->sleeping, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &m->round, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#endif
}

#endif

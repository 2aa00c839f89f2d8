/* The threads that compute a command list together, and the distribution of an operation's work among them. */
#ifndef RERANKD_TEAM_H
#define RERANKD_TEAM_H

#include <stdint.h>

/* The pieces of one thread; `next` is the first that no thread has taken. Aligned to a cache line of its own. */
typedef struct { int64_t next, end; } __attribute__((aligned(64))) range;

/* ranges: of each thread, of the present operation. scratch: `scratch_bytes` of memory for each thread */
typedef struct {
    int64_t threads;
    range *ranges;
    char *scratch;
    int64_t scratch_bytes;
} team;

/* The next piece of the thread's own, else of another thread, since a thread that shares its core with other work is slower;
 * -1 where no piece is left. */
static inline int64_t take_piece(const team *t, int64_t thread)
{
    for (int64_t k = 0; k < t->threads; k++) {
        range *from = t->ranges + (thread + k) % t->threads;
        if (from->next >= from->end)
            continue;
        const int64_t piece = __atomic_fetch_add(&from->next, 1, __ATOMIC_RELAXED);
        if (piece < from->end)
            return piece;
    }
    return -1;
}

/* Give each thread about the same number of adjacent pieces. A thread gets about the same rows in every operation, since its
 * second-level cache may still hold these rows. */
static inline void share_pieces(team *t, int64_t pieces)
{
    for (int64_t i = 0; i < t->threads; i++)
        t->ranges[i] = (range){ pieces * i / t->threads, pieces * (i + 1) / t->threads };
}

#endif

/* Calls the kernels for another process, whose memory it borrows page by page.
 *
 * A request on standard input is eight numbers: a function, then its arguments. The kernels run on the caller's addresses, with
 * the bit MOVED changed, so that they meet no address of this process. The first touch of a page fetches the page from the
 * caller, the first write keeps a copy, and the bytes that changed go back with the result. */
#define _GNU_SOURCE
#include "operations.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOVED (1ULL << 46)
enum { PAGE = 4096, MOST_PAGES = 1 << 16 };
enum { RUN, PACK, PACK_INT8, RUNS, LARGEST_WEIGHT };
enum { WANTED, CHANGED, RESULT };

int rerankd_run(int threads, int number, int64_t bytes, const char *operations);
void rerankd_pack(int number, int64_t outputs, int64_t inputs, const void *weight, void *packed);
void rerankd_pack_int8(int number, int64_t outputs, int64_t inputs, const int8_t *weight, void *packed, float *sums);
int rerankd_runs(int number);
int64_t rerankd_largest_weight(int number);

typedef struct { char *at, *before; } page;
static page pages[MOST_PAGES];
static int count;
static int locked;

static void receive(void *to, int64_t bytes)
{
    for (int64_t n; bytes; bytes -= n, to = (char *)to + n)
        if ((n = read(0, to, bytes)) <= 0)
            _exit(0);
}

static void send(int64_t kind, int64_t value, const void *from, int64_t bytes)
{
    const int64_t message[3] = { kind, value, bytes };
    const void *parts[2] = { message, from };
    const int64_t sizes[2] = { sizeof message, bytes };
    for (int i = 0; i < 2; i++)
        for (int64_t done = 0, n; done < sizes[i]; done += n)
            if ((n = write(1, (const char *)parts[i] + done, sizes[i] - done)) <= 0)
                _exit(1);
}

static char *memory(void)
{
    return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void borrow(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    char *at = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
    while (__atomic_exchange_n(&locked, 1, __ATOMIC_ACQUIRE))
        ;
    page *found = pages;
    while (found < pages + count && found->at != at)
        found++;
    if (found == pages + count) {
        if (count == MOST_PAGES)
            _exit(2);
        send(WANTED, (int64_t)((uintptr_t)at ^ MOVED), NULL, 0);
        char *whole = memory();
        receive(whole, PAGE);
        mprotect(whole, PAGE, PROT_READ);
        mremap(whole, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at); /* other threads see all of the page or nothing */
        *found = (page){ at, NULL };
        count++;
    } else if (!found->before) {
        found->before = memcpy(memory(), at, PAGE);
        mprotect(at, PAGE, PROT_READ | PROT_WRITE);
    }
    __atomic_store_n(&locked, 0, __ATOMIC_RELEASE);
}

static void give_back(void)
{
    for (page *p = pages; p < pages + count; p++) {
        for (int i = 0, end; p->before && i < PAGE; i = end) {
            end = i + 1;
            if (p->at[i] == p->before[i])
                continue;
            while (end < PAGE && p->at[end] != p->before[end])
                end++;
            send(CHANGED, (int64_t)((uintptr_t)(p->at + i) ^ MOVED), p->at + i, end - i);
        }
        munmap(p->at, PAGE);
        if (p->before)
            munmap(p->before, PAGE);
    }
    count = 0;
}

static int64_t call(const int64_t *a, const char *operations)
{
    switch (a[0]) {
    case RUN:
        return rerankd_run((int)a[1], (int)a[2], a[3], operations);
    case PACK:
        rerankd_pack((int)a[1], a[2], a[3], (void *)a[4], (void *)a[5]);
        return 0;
    case PACK_INT8:
        rerankd_pack_int8((int)a[1], a[2], a[3], (void *)a[4], (void *)a[5], (void *)a[6]);
        return 0;
    case RUNS:
        return rerankd_runs((int)a[1]);
    default:
        return rerankd_largest_weight((int)a[1]);
    }
}

int main(void)
{
    struct sigaction action = { .sa_sigaction = borrow, .sa_flags = SA_SIGINFO };
    sigaction(SIGSEGV, &action, NULL);
    for (int64_t request[8];;) {
        receive(request, sizeof request);
        char *operations = NULL;
        if (request[0] == RUN)
            receive(operations = malloc(request[3] + 1), request[3]);
        const int64_t result = call(request, operations);
        free(operations);
        give_back();
        send(RESULT, result, NULL, 0);
    }
}

/* A plugin of QEMU that counts the instructions which each thread of a program executes.
 *
 * usage: qemu-aarch64 -plugin count.so,counts=FILE PROGRAM
 *
 * FILE holds the counts, 64 bits a thread. It is mapped, so that another process reads it while the program waits.
 * The declarations are those of qemu-plugin.h that are used here: Debian's packages of QEMU lack that header. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { THREADS = 512, NO_REGISTERS = 0 };

struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t plugin, void (*translated)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*executed)(unsigned, void *), int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = VERSION;
static uint64_t *counts;

static void executed(unsigned thread, void *instructions)
{
    if (thread >= THREADS)
        abort();
    counts[thread] += (uintptr_t)instructions;
}

static void translated(uint64_t plugin, struct qemu_plugin_tb *block)
{
    (void)plugin;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)qemu_plugin_tb_n_insns(block));
}

int qemu_plugin_install(uint64_t plugin, const void *info, int count, char **arguments)
{
    (void)info;
    if (count != 1 || strncmp(arguments[0], "counts=", 7))
        return fputs("count.so needs one argument, counts=FILE\n", stderr);
    const int file = open(arguments[0] + 7, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, THREADS * sizeof *counts))
        return perror(arguments[0] + 7), 1;
    counts = mmap(NULL, THREADS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counts == MAP_FAILED)
        return perror("mmap"), 1;
    qemu_plugin_register_vcpu_tb_trans_cb(plugin, translated);
    return 0;
}

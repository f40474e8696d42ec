/* SPDX-License-Identifier: Apache-2.0 */
#include "work.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const char *name;
static double wall, cpu;
static bool ended;

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The process's own time by the clock, which is finer than getrusage's. */
static double cpu_seconds(void)
{
    struct rusage r;
    getrusage(RUSAGE_CHILDREN, &r);
    return seconds(CLOCK_PROCESS_CPUTIME_ID) + (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}

void work_begin(void)
{
    /* What is on its way to a serial port would be sent while the work is done. */
    printf("begin %s\n", name);
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    cpu = cpu_seconds();
    wall = seconds(CLOCK_MONOTONIC);
}

void work_end(void)
{
    if (ended)
        return;
    ended = true;
    wall = seconds(CLOCK_MONOTONIC) - wall;
    cpu = cpu_seconds() - cpu;
}

int work_main(int argc, char **argv, const struct work *works, size_t count)
{
    for (size_t i = 0; argc == 3 && i < count; i++) {
        if (strcmp(works[i].name, argv[1]) != 0)
            continue;
        size_t ops = works[i].ops / strtoul(argv[2], NULL, 10);
        name = works[i].name;
        uint64_t sum = works[i].run(ops ? ops : 1);
        work_end();
        printf("work %s ops=%zu wall=%.6f cpu=%.6f sum=%016llx\n", name, ops ? ops : 1, wall, cpu,
               (unsigned long long)sum);
        return 0;
    }
    fprintf(stderr, "usage: %s NAME DIVISOR; NAME is one of", argv[0]);
    for (size_t i = 0; i < count; i++)
        fprintf(stderr, " %s", works[i].name);
    fprintf(stderr, "\n");
    return 2;
}

void work_check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s: %s\n", name, what, strerror(errno));
    exit(1);
}

const char *work_beside(const char *other)
{
    static char path[4096];
    ssize_t got = readlink("/proc/self/exe", path, sizeof(path) - 1);
    work_check(got > 0, "readlink");
    path[got] = 0;
    char *slash = strrchr(path, '/');
    snprintf(slash + 1, sizeof(path) - (size_t)(slash + 1 - path), "%s", other);
    return path;
}

void *work_memory(size_t size)
{
    enum { HUGE_PAGE = 2 << 20 };
    void *memory = aligned_alloc(HUGE_PAGE, (size + HUGE_PAGE - 1) & -(size_t)HUGE_PAGE);
    work_check(memory != NULL, "memory");
    madvise(memory, size, MADV_HUGEPAGE);
    memset(memory, 0, size);
    return memory;
}

void work_on_one_cpu(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    work_check(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

void work_text(char *to, size_t size)
{
    enum { WORDS = 4096, LONGEST = 12 };
    static char words[WORDS][LONGEST + 1];
    uint64_t state = 1;
    for (int w = 0; w < WORDS; w++)
        for (uint32_t i = 0, length = 2 + work_random(&state) % (LONGEST - 1); i < length; i++)
            words[w][i] = (char)('a' + work_random(&state) % 26);
    for (size_t at = 0; at < size;) {
        /* Some words are much more frequent than others. */
        uint32_t pick = work_random(&state) % WORDS;
        const char *word = words[pick * (uint64_t)(work_random(&state) % WORDS) / WORDS];
        for (; *word && at < size; word++)
            to[at++] = *word;
        if (at < size)
            to[at++] = work_random(&state) % 12 ? ' ' : '\n';
    }
}

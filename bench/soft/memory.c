/* SPDX-License-Identifier: Apache-2.0 */
/* Loads and stores, in each cache and beyond them. */
#include "work.h"

#include <string.h>

enum { LINE = 64, KIB = 1 << 10, MIB = 1 << 20 };

/* One cycle through all lines of the memory, in a random order: each load waits for the last. */
static uint64_t chase(size_t size, size_t steps)
{
    struct node {
        struct node *next;
        uint64_t number;
        char rest[LINE - 16];
    } *nodes = work_memory(size), *at;
    size_t count = size / LINE;
    uint64_t state = 1, sum = 0;
    uint32_t *order = work_memory(count * sizeof(*order));
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t other = work_random(&state) % i;
        uint32_t t = order[i];
        order[i] = order[other];
        order[other] = t;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % count]];
        nodes[order[i]].number = order[i];
    }
    at = nodes;
    work_begin();
    for (size_t i = 0; i < steps; i++) {
        sum += at->number;
        at = at->next;
    }
    return sum;
}

static uint64_t run_chase_16k(size_t steps)
{
    return chase(16 * KIB, steps);
}

static uint64_t run_chase_1m(size_t steps)
{
    return chase(MIB, steps);
}

static uint64_t run_chase_16m(size_t steps)
{
    return chase(16 * MIB, steps);
}

static uint64_t run_chase_128m(size_t steps)
{
    return chase(128 * MIB, steps);
}

static uint64_t run_triad(size_t times)
{
    enum { COUNT = 16 * MIB / sizeof(double) };
    double *a = work_memory(16 * MIB), *b = work_memory(16 * MIB), *c = work_memory(16 * MIB);
    for (int i = 0; i < COUNT; i++)
        b[i] = c[i] = i;
    work_begin();
    for (size_t t = 0; t < times; t++) {
        for (int i = 0; i < COUNT; i++)
            a[i] = b[i] + 3.0 * c[i];
        double *old = b; /* the next round depends on this one */
        b = a;
        a = old;
    }
    work_end();
    return work_hash(0, b, 16 * MIB / 64);
}

static uint64_t run_copy_small(size_t times)
{
    static unsigned char from[4096], to[4096];
    uint64_t state = 1;
    for (size_t i = 0; i < sizeof(from); i++)
        from[i] = (unsigned char)work_random(&state);
    work_begin();
    for (size_t i = 0; i < times; i++) {
        uint32_t r = work_random(&state);
        memcpy(to + (r >> 8 & 2047), from + (r >> 20 & 2047), r % 64 + 1);
    }
    work_end();
    return work_hash(0, to, sizeof(to));
}

static uint64_t run_copy_large(size_t times)
{
    unsigned char *from = work_memory(16 * MIB), *to = work_memory(16 * MIB);
    for (size_t i = 0; i < 16 * MIB; i++)
        from[i] = (unsigned char)(i >> 3);
    work_begin();
    for (size_t i = 0; i < times; i++) {
        from[i] ^= 1;
        memcpy(to, from, 16 * MIB);
    }
    work_end();
    return work_hash(0, to, 16 * KIB);
}

static const struct work works[] = {
    {"chase-16k",  run_chase_16k,  200000000},
    {"chase-1m",   run_chase_1m,   30000000 },
    {"chase-16m",  run_chase_16m,  2500000  },
    {"chase-128m", run_chase_128m, 2500000  },
    {"triad",      run_triad,      200      },
    {"copy-small", run_copy_small, 30000000 },
    {"copy-large", run_copy_large, 400      },
};

WORK_MAIN(works)

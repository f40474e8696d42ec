/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs of this folder share. Each is a table of works, and is called as
 *
 *     PROGRAM NAME DIVISOR
 *
 * to do one work of it, a fixed amount divided by DIVISOR, and to print
 *
 *     begin NAME
 *     work NAME ops=N wall=SECONDS cpu=SECONDS sum=HEX
 *
 * wall and cpu are of the work alone, without what prepares it; cpu includes child processes that
 * have been waited for. sum is a checksum of the results: the same wherever the work is done right.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct work {
    const char *name;
    uint64_t (*run)(size_t ops); /* calls work_begin() when it is prepared; returns the checksum */
    size_t ops;                  /* 0.2 to 0.4 s of a processor of 2023 */
};

int work_main(int argc, char **argv, const struct work *works, size_t count);
void work_begin(void);
void work_end(void); /* where something is to be done after the work; else the return is the end */

/* Fails loudly: the harness shows what a program wrote. */
void work_check(bool ok, const char *what);

/* A path next to this program. */
const char *work_beside(const char *name);

/* Pages that are there, huge ones if the kernel has them: by default kernels differ in that. */
void *work_memory(size_t size);

/* This process on one CPU, as a machine with one would have it. */
void work_on_one_cpu(void);

/* Text that compresses as text does, always the same. */
void work_text(char *to, size_t size);

static inline uint32_t work_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

static inline uint64_t work_hash(uint64_t hash, const void *data, size_t size)
{
    for (const unsigned char *p = data, *end = p + size; p < end; p++)
        hash = (hash ^ *p) * 1099511628211u;
    return hash;
}

#define WORK_MAIN(works)                                                                           \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return work_main(argc, argv, works, sizeof(works) / sizeof((works)[0]));                   \
    }

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters of an engine, for `hull run --stats`: each vCPU fills a list of names and values
 * (engine_ops.vcpu_stats), and a table is made of all lists. A new counter is one more line where
 * its engine fills the list; nothing else knows the names.
 */
#ifndef HULL_ENGINE_STATS_H
#define HULL_ENGINE_STATS_H

#include <stdbool.h>
#include <stdint.h>

#define ENGINE_STATS_MAX 384

struct engine_stat {
    char name[40];
    uint64_t value;
    bool ranked;
};

struct engine_stats {
    unsigned count;
    struct engine_stat list[ENGINE_STATS_MAX];
};

/* What does not fit is dropped. The name is printf-like; equal names of several vCPUs are one row.
 */
void engine_stats_add(struct engine_stats *stats, uint64_t value, const char *name, ...)
    __attribute__((format(printf, 3, 4)));
/* One of many of its kind, added one after another: the table has the highest alone, in order, and
 * the rest as a sum. Nothing of it where the value is 0. */
void engine_stats_add_ranked(struct engine_stats *stats, uint64_t value, const char *name, ...)
    __attribute__((format(printf, 3, 4)));

/* The table, in lines; the caller frees it. NULL: no memory. */
char *engine_stats_table(const char *engine, const struct engine_stats *vcpus, unsigned count);

#endif

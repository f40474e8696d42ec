/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/stats.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The table is cut into several where there are more vCPUs than fit on a line. */
#define COLUMNS     4u
#define RANKS_SHOWN 12u

/* --- filling --- */

__attribute__((format(printf, 4, 0))) static void add(struct engine_stats *stats, uint64_t value,
                                                      bool ranked, const char *name, va_list args)
{
    if (stats->count == ENGINE_STATS_MAX)
        return;
    struct engine_stat *stat = &stats->list[stats->count++];
    vsnprintf(stat->name, sizeof(stat->name), name, args);
    stat->value = value;
    stat->ranked = ranked;
}

void engine_stats_add(struct engine_stats *stats, uint64_t value, const char *name, ...)
{
    va_list args;
    va_start(args, name);
    add(stats, value, false, name, args);
    va_end(args);
}

void engine_stats_add_ranked(struct engine_stats *stats, uint64_t value, const char *name, ...)
{
    va_list args;
    va_start(args, name);
    if (value != 0)
        add(stats, value, true, name, args);
    va_end(args);
}

/* --- the rows of all vCPUs --- */

struct row {
    const char *name;
    bool ranked;
    uint64_t total;
    uint64_t *values; /* one a vCPU */
};

struct table {
    const char *engine;
    struct row *rows;
    unsigned row_count, columns;
};

static struct row *find_row(struct table *t, const struct engine_stat *stat)
{
    for (unsigned i = 0; i < t->row_count; i++) {
        if (strcmp(t->rows[i].name, stat->name) == 0)
            return &t->rows[i];
    }
    return NULL;
}

/* Behind the last of its kind where it is ranked: the kinds of several vCPUs stay together. A kind
 * is known by its name's first word. */
static unsigned place_of(const struct table *t, const struct engine_stat *stat)
{
    size_t word = strcspn(stat->name, " ") + 1;
    for (unsigned i = t->row_count; stat->ranked && i > 0; i--) {
        const struct row *row = &t->rows[i - 1];
        if (row->ranked && strncmp(row->name, stat->name, word) == 0)
            return i;
    }
    return t->row_count;
}

static bool add_value(struct table *t, const struct engine_stat *stat, unsigned column)
{
    struct row *row = find_row(t, stat);
    if (!row) {
        uint64_t *values = calloc(t->columns, sizeof(*values));
        struct row *rows = realloc(t->rows, (t->row_count + 1) * sizeof(*rows));
        t->rows = rows ? rows : t->rows;
        if (!values || !rows) {
            free(values);
            return false;
        }
        unsigned place = place_of(t, stat);
        row = &rows[place];
        memmove(row + 1, row, (t->row_count - place) * sizeof(*row));
        *row = (struct row){.name = stat->name, .ranked = stat->ranked, .values = values};
        t->row_count++;
    }
    row->values[column] += stat->value;
    row->total += stat->value;
    return true;
}

/* Rows [first, first + n) are one kind: the highest first, the rest in one. */
static unsigned rank(struct table *t, unsigned first, unsigned n)
{
    struct row *rows = &t->rows[first];
    for (unsigned i = 1; i < n; i++) {
        for (unsigned k = i; k > 0 && rows[k].total > rows[k - 1].total; k--) {
            struct row swap = rows[k];
            rows[k] = rows[k - 1];
            rows[k - 1] = swap;
        }
    }
    if (n <= RANKS_SHOWN + 1)
        return n;
    struct row *rest = &rows[RANKS_SHOWN];
    rest->name = "  all others of these";
    for (unsigned i = RANKS_SHOWN + 1; i < n; i++) {
        rest->total += rows[i].total;
        for (unsigned column = 0; column < t->columns; column++)
            rest->values[column] += rows[i].values[column];
        free(rows[i].values);
    }
    memmove(rest + 1, rows + n, (t->row_count - first - n) * sizeof(*rows));
    t->row_count -= n - RANKS_SHOWN - 1;
    return RANKS_SHOWN + 1;
}

static bool same_kind(const struct row *a, const struct row *b)
{
    return a->ranked && b->ranked && strncmp(a->name, b->name, strcspn(a->name, " ") + 1) == 0;
}

static void rank_all(struct table *t)
{
    for (unsigned i = 0; i < t->row_count;) {
        unsigned n = 1;
        while (i + n < t->row_count && same_kind(&t->rows[i], &t->rows[i + n]))
            n++;
        i += t->rows[i].ranked ? rank(t, i, n) : 1;
    }
}

/* --- printing --- */

static void print_part(FILE *out, const struct table *t, unsigned from, unsigned to)
{
    char title[64];
    bool all = t->columns > 1 && from == 0;
    snprintf(title, sizeof(title), "engine %s", t->engine);
    fprintf(out, "%-36s", title);
    if (all)
        fprintf(out, " %15s", "all");
    for (unsigned column = from; column < to; column++) {
        snprintf(title, sizeof(title), "vCPU %u", column);
        fprintf(out, " %15s", title);
    }
    fputc('\n', out);
    for (unsigned i = 0; i < t->row_count; i++) {
        const struct row *row = &t->rows[i];
        fprintf(out, "%-36s", row->name);
        if (all)
            fprintf(out, " %15llu", (unsigned long long)row->total);
        for (unsigned column = from; column < to; column++)
            fprintf(out, " %15llu", (unsigned long long)row->values[column]);
        fputc('\n', out);
    }
}

static void print(FILE *out, const struct table *t)
{
    for (unsigned from = 0; from < t->columns; from += COLUMNS)
        print_part(out, t, from, from + COLUMNS < t->columns ? from + COLUMNS : t->columns);
}

char *engine_stats_table(const char *engine, const struct engine_stats *vcpus, unsigned count)
{
    struct table t = {.engine = engine, .columns = count};
    char *text = NULL;
    size_t len;
    bool good = true;
    for (unsigned column = 0; column < count; column++) {
        for (unsigned i = 0; good && i < vcpus[column].count; i++)
            good = add_value(&t, &vcpus[column].list[i], column);
    }
    FILE *out = good ? open_memstream(&text, &len) : NULL;
    if (out) {
        rank_all(&t);
        print(out, &t);
        if (fclose(out) != 0) {
            free(text);
            text = NULL;
        }
    }
    for (unsigned i = 0; i < t.row_count; i++)
        free(t.rows[i].values);
    free(t.rows);
    return text;
}

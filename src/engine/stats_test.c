/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/stats.h"

#include <stdlib.h>

#include "base/tap.h"

/* One vCPU with one counter. */
static void test_one(void)
{
    struct engine_stats *stats = calloc(1, sizeof(*stats));
    if (!stats)
        return;
    engine_stats_add(stats, 123, "instructions");
    char *text = engine_stats_table("this", stats, 1);
    is_str(text ? text : "",
           "engine this                                   vCPU 0\n"
           "instructions                                     123\n",
           "one vCPU has no column for all");
    free(text);
    free(stats);
}

/* The line that begins with name, or "". */
static const char *line_of(const char *text, const char *name)
{
    const char *at = text ? strstr(text, name) : NULL;
    return at ? at : "";
}

static void test_many(void)
{
    struct engine_stats *stats = calloc(6, sizeof(*stats));
    if (!stats)
        return;
    for (unsigned i = 0; i < 6; i++) {
        engine_stats_add(&stats[i], 1000, "instructions");
        for (unsigned v = 0; v < 20; v++)
            engine_stats_add_ranked(&stats[i], v < i ? 0 : v, "interrupt %u", v);
        engine_stats_add(&stats[i], i, "last");
    }
    char *text = engine_stats_table("that", stats, 6);
    const char *high = line_of(text, "interrupt 19 "), *next = line_of(text, "interrupt 18 ");
    ok(strstr(line_of(text, "instructions"), " 6000 "), "there is a sum of all vCPUs");
    ok(*high && *next && high < next, "those of one kind are ordered");
    ok(*line_of(text, "interrupt 8 ") && !*line_of(text, "interrupt 7 "),
       "the low ones are left out");
    ok(atoi(line_of(text, "all others of these") + 20) ==
           6 * 7 + 6 * 6 + 6 * 5 + 5 * 4 + 4 * 3 + 3 * 2 + 2,
       "and are there as a sum");
    ok(atoi(line_of(text, "last") + 4) == 15, "what comes behind them is whole");
    ok(line_of(text, "vCPU 4") > line_of(text, "last"), "more vCPUs than fit have a table more");
    free(text);

    stats[0].count = 0;
    for (unsigned i = 0; i < ENGINE_STATS_MAX + 5; i++)
        engine_stats_add(&stats[0], i, "counter %u", i);
    is_int(stats[0].count, ENGINE_STATS_MAX, "what does not fit is dropped");
    free(stats);
}

int main(void)
{
    test_one();
    test_many();
    return tap_done();
}

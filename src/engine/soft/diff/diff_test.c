/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine against the host's processor, instruction by instruction.
 *
 * Without arguments: a share with a fixed seed, as a unit test. For more:
 *
 *     diff_test [--group NAME[,NAME...]] [--row MNEMONIC] [--cases N] [--seed N] [--mode NAME]
 *               [--table FILE] [--tier 1|2]
 *
 * N cases for each group; --table writes for each row of the decoder's tables how many cases of it
 * there were and how many of them faulted (make diff-table). --tier 2: by the translator alone,
 * where it knows the instruction; without it both tiers in turn.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/err.h"
#include "base/tap.h"
#include "engine/soft/diff/diff.h"

#define STATES          16 /* of each instruction */
#define SHARE           40000
#define REPORTS_A_ROW   2
#define REPORTS_AT_MOST 60

struct options {
    unsigned groups; /* bits */
    const char *row;
    uint64_t cases, seed;
    const struct diff_mode *mode; /* NULL: all */
    const char *table;            /* a file */
    unsigned tiers;               /* bits: 1, 2 */
};

static struct diff_engine engine;
static struct diff_rows rows;
static unsigned reports;

/* --- memory --- */

static void randomise_memory(struct diff_random *r)
{
    uint8_t *host = diff_native_memory();
    for (size_t at = 0; at < (size_t)DIFF_PAGES * DIFF_PAGE; at += 8) {
        uint64_t value = diff_random(r);
        if (at % 64 >= 48)
            value >>= value & 63;
        memcpy(host + at, &value, 8);
    }
    memcpy(engine.memory, host, (size_t)DIFF_PAGES * DIFF_PAGE);
}

static void poke(const struct diff_poke *p)
{
    uint64_t limit = DIFF_ARENA + DIFF_PAGES * DIFF_PAGE;
    for (uint32_t i = 0; i < p->len; i++) {
        uint64_t la = p->la + i;
        if (la < DIFF_ARENA || la >= limit)
            continue;
        engine.memory[la - DIFF_ARENA] = p->bytes[i];
        diff_native_memory()[la - DIFF_ARENA] = p->bytes[i];
    }
}

/* --- one batch: some instructions, each with several states --- */

struct batch {
    struct diff_insn insns[DIFF_SLOTS];
    struct diff_row *rows[DIFF_SLOTS];
    unsigned count;
};

static void run_case(struct diff_case *c, struct diff_insn *d, struct diff_row *row)
{
    static struct diff_result got, want;
    poke(&c->poke);
    diff_native_run(c, &want);
    diff_engine_run(&engine, d, c, &got);
    row->cases++;
    row->faults += want.vector >= 0;
    const char *what = diff_compare(c, &got, &want, engine.memory, diff_native_memory());
    if (!what)
        return;
    if (row->wrong++ < REPORTS_A_ROW && reports++ < REPORTS_AT_MOST)
        diff_report(c, what, &got, &want, engine.memory, diff_native_memory());
    /* Equal again. */
    memcpy(engine.memory, diff_native_memory(), (size_t)DIFF_PAGES * DIFF_PAGE);
}

static uint64_t run_batch(struct diff_random *r, struct batch *b, const struct diff_mode *mode)
{
    static struct diff_case c;
    uint64_t cases = 0;
    diff_engine_set_mode(&engine, mode);
    diff_native_load(b->insns, b->count, mode);
    randomise_memory(r);
    for (unsigned i = 0; i < b->count; i++) {
        for (unsigned n = 0; n < STATES; n++) {
            if (!diff_make_state(r, &c, &b->insns[i], diff_native_memory())) {
                b->rows[i]->unmade++;
                break;
            }
            run_case(&c, &b->insns[i], b->rows[i]);
            cases++;
        }
    }
    if (memcmp(engine.memory, diff_native_memory(), (size_t)DIFF_PAGES * DIFF_PAGE) != 0) {
        printf("# memory differs away from all operands; the batch ends with:\n");
        for (unsigned i = 0; i < b->count; i++)
            printf("#   %s\n", b->insns[i].insn.opcode->name);
        b->rows[0]->wrong++;
    }
    return cases;
}

static void fill_batch(struct diff_random *r, struct batch *b, struct diff_row *const *chosen,
                       size_t chosen_count, const struct diff_mode *mode)
{
    const struct decode_mode decode = {
        .code_bits = (uint8_t)mode->code_bits, .vex = true, .features = engine.vm.model.features};
    b->count = 0;
    for (unsigned tries = 0; tries < 4 * DIFF_SLOTS && b->count < DIFF_SLOTS; tries++) {
        struct diff_row *row = chosen[diff_random(r) % chosen_count];
        struct diff_insn *d = &b->insns[b->count];
        if (!diff_example_of(row, mode->code_bits)->len)
            continue;
        /* At different places of a slot, so that RIP's low bits differ. */
        uint64_t address = DIFF_CODE + (uint64_t)b->count * DIFF_SLOT + 200 + diff_below(r, 16);
        if (!diff_make_insn(r, d, row, mode, &decode, address)) {
            row->unmade++;
            continue;
        }
        b->rows[b->count++] = row;
    }
}

/* --- a group --- */

static bool is_chosen(const struct diff_row *row, unsigned group, const struct options *o)
{
    return row->group == group && (!o->row || strcmp(o->row, row->opcode->name) == 0);
}

/* Mostly 64-bit code. */
static const struct diff_mode *random_mode(struct diff_random *r)
{
    const struct diff_mode *mode = &diff_modes[diff_below(r, 2 * DIFF_MODES) % (DIFF_MODES + 1)];
    return mode < diff_modes + DIFF_MODES && diff_native_has(mode) ? mode
                                                                   : &diff_modes[DIFF_MODE_64];
}

/* Returns how many rows have differences. */
static unsigned run_group(unsigned group, const struct options *o)
{
    static struct batch batch;
    struct diff_random r = {.state = o->seed * 0x100000001b3ULL + group};
    struct diff_row **chosen = calloc(rows.count, sizeof(struct diff_row *));
    size_t count = 0;
    unsigned wrong = 0;
    uint64_t cases = 0;
    struct timespec from, to;
    for (size_t i = 0; i < rows.count; i++) {
        if (is_chosen(&rows.rows[i], group, o))
            chosen[count++] = &rows.rows[i];
    }
    clock_gettime(CLOCK_MONOTONIC, &from);
    while (count && cases < o->cases) {
        const struct diff_mode *mode = o->mode ? o->mode : random_mode(&r);
        fill_batch(&r, &batch, chosen, count, mode);
        if (batch.count)
            cases += run_batch(&r, &batch, mode);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9;
    for (size_t i = 0; i < count; i++)
        wrong += chosen[i]->wrong != 0;
    printf("# %s: %zu rows, %" PRIu64 " cases in %.1f s\n", diff_group_names[group], count, cases,
           seconds);
    free(chosen);
    return wrong;
}

static bool is_covered(const struct diff_row *row)
{
    return row->group != DIFF_NONE && row->cases != 0;
}

/* Mnemonics have no character that Markdown would take for its own. */
static void print_row(FILE *to, size_t index)
{
    const struct diff_row *row = &rows.rows[index];
    char place[64];
    decode_opcode_place(index, place, sizeof(place));
    fprintf(to, "| %s | %s | ", place, row->opcode->name);
    if (is_covered(row))
        fprintf(to, "%s | %" PRIu64 " | %" PRIu64 " |\n", diff_group_names[row->group], row->cases,
                row->faults);
    else
        fprintf(to, "- | 0 | %s |\n",
                row->group == DIFF_NONE ? row->why : "no operands were found");
}

/* docs/soft-coverage.md: false where the file cannot be written. */
static bool write_table(const struct options *o)
{
    size_t covered = 0;
    FILE *to = fopen(o->table, "w");
    if (!to)
        return false;
    for (size_t i = 0; i < rows.count; i++)
        covered += is_covered(&rows.rows[i]);
    fprintf(
        to,
        "# What the soft engine is compared in\n\n"
        "Generated by `make diff-table`: every row of the decoder's tables, and how many random\n"
        "cases of it were run by the engine and by the host's processor (%" PRIu64
        " of each group,\n"
        "seed %" PRIu64
        "). The last column tells how many of them ended with an exception, or why\n"
        "there were none.\n\n"
        "%zu of %zu rows are covered.\n\n"
        "| place | mnemonic | group | cases | faults |\n"
        "|---|---|---|---|---|\n",
        o->cases, o->seed, covered, rows.count);
    for (size_t i = 0; i < rows.count; i++)
        print_row(to, i);
    return fclose(to) == 0;
}

/* --- options --- */

static unsigned parse_groups(const char *list)
{
    unsigned groups = 0;
    for (const char *at = list; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        size_t len = strcspn(at, ",");
        for (unsigned i = 0; i < DIFF_GROUPS; i++) {
            if (strlen(diff_group_names[i]) == len && strncmp(diff_group_names[i], at, len) == 0)
                groups |= 1u << i;
        }
    }
    return groups;
}

static const struct diff_mode *find_mode(const char *name)
{
    for (unsigned i = 0; i < DIFF_MODES; i++) {
        if (strcmp(diff_modes[i].name, name) == 0)
            return &diff_modes[i];
    }
    return NULL;
}

static bool parse(int argc, char **argv, struct options *o)
{
    bool found = true;
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value)
            return false;
        i++;
        if (strcmp(name, "--group") == 0)
            o->groups = parse_groups(value);
        else if (strcmp(name, "--row") == 0)
            o->row = value;
        else if (strcmp(name, "--cases") == 0)
            o->cases = strtoull(value, NULL, 0);
        else if (strcmp(name, "--seed") == 0)
            o->seed = strtoull(value, NULL, 0);
        else if (strcmp(name, "--table") == 0)
            o->table = value;
        else if (strcmp(name, "--tier") == 0)
            o->tiers = value[0] == '2' ? 2 : 1;
        else if (strcmp(name, "--mode") == 0)
            found = (o->mode = find_mode(value)) != NULL;
        else
            return false;
    }
    return o->groups != 0 && found;
}

int main(int argc, char **argv)
{
    struct options o = {.groups = (1u << DIFF_GROUPS) - 1, .cases = SHARE, .seed = 1, .tiers = 3};
    struct err err = ERR_INIT;
    if (!parse(argc, argv, &o)) {
        fprintf(stderr, "diff_test: the options are at the head of diff_test.c\n");
        return 2;
    }
    if (diff_engine_init(&engine, &err) < 0) {
        printf("# %s\n", err.text);
        ok(false, "the engine is set up");
        return tap_done();
    }
    const char *reason = diff_native_init();
    if (reason) {
        tap_skip("the engine and the host's processor do the same", reason);
        return tap_done();
    }
    if (diff_rows_init(&rows, diff_native_features(engine.vm.model.features)) < 0)
        return 1;
    for (unsigned i = 0; i < DIFF_MODES; i++) {
        if (!diff_native_has(&diff_modes[i]))
            printf("# %s: code cannot be run here\n", diff_modes[i].name);
    }
    for (unsigned tier = 1; tier <= 2; tier++) {
        engine.translate = tier == 2;
        for (unsigned group = 0; group < DIFF_GROUPS; group++) {
            char what[80];
            if (!(o.groups >> group & 1) || !(o.tiers >> (tier - 1) & 1))
                continue;
            snprintf(what, sizeof(what), "%s: tier %u and the host's processor do the same",
                     diff_group_names[group], tier);
            is_int(run_group(group, &o), 0, what);
        }
    }
    if (o.table && !write_table(&o))
        is_int(errno, 0, "the table can be written");
    diff_rows_free(&rows);
    diff_engine_fini(&engine);
    return tap_done();
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "state/state.h"

#include <errno.h>
#include <stdlib.h>

#include "base/tap.h"
#include "base/units.h"

struct line_state {
    uint16_t level;
    uint8_t mask;
    uint8_t pad_;
};

struct demo_state {
    uint8_t index;
    uint8_t pad_[3];
    uint32_t alarm;
    uint64_t counters[2];
    uint8_t ram[40];
    struct line_state lines[2];
};

static const struct state_field line_fields[] = {
    STATE_U16(struct line_state, level, 1, 0x1234, "Level"),
    STATE_U8(struct line_state, mask, 1, 0xff, "Mask"),
    STATE_PAD(struct line_state, pad_),
};
static const struct state_table line_table = STATE_TABLE("line", struct line_state, 1, line_fields);

static const struct state_field demo_fields[] = {
    STATE_U8(struct demo_state, index, 1, 7, "Index"),
    STATE_PAD(struct demo_state, pad_),
    STATE_U32(struct demo_state, alarm, 2, 0xdeadbeef, "Alarm"),
    STATE_U64(struct demo_state, counters, 1, UINT64_MAX, "Counters"),
    STATE_BYTES(struct demo_state, ram, 1, "RAM"),
    STATE_STRUCT(struct demo_state, lines, struct line_state, 1, &line_table, "Lines"),
};
static const struct state_table demo_table = STATE_TABLE("demo", struct demo_state, 2, demo_fields);

static void test_reset(void)
{
    struct demo_state state;

    memset(&state, 0x5a, sizeof(state));
    state_reset(&demo_table, &state);
    is_int(state.index, 7, "a byte is reset");
    is_int(state.pad_[0] | state.pad_[1] | state.pad_[2], 0, "padding is zero");
    is_int(state.alarm, 0xdeadbeef, "a word is reset");
    ok(state.counters[0] == UINT64_MAX && state.counters[1] == UINT64_MAX, "each of an array is");
    ok(state.ram[0] == 0 && state.ram[39] == 0, "bytes are zero");
    ok(state.lines[1].level == 0x1234 && state.lines[1].mask == 0xff && state.lines[1].pad_ == 0,
       "nested tables are reset");
}

/* A copy of demo_table with one thing wrong must be refused for the right reason. */
static void test_refused(size_t index, struct state_field wrong, const char *reason,
                         const char *what)
{
    struct state_field fields[ARRAY_LEN(demo_fields)];
    struct state_table table = demo_table;
    char why[256] = "";

    memcpy(fields, demo_fields, sizeof(fields));
    fields[index] = wrong;
    table.fields = fields;
    is_int(state_table_check(&table, why, sizeof(why)), -EINVAL, what);
    if (!ok(strstr(why, reason) != NULL, "for the right reason"))
        printf("# %s\n", why);
}

static struct state_field changed(size_t index, void (*change)(struct state_field *))
{
    struct state_field field = demo_fields[index];
    change(&field);
    return field;
}

static void offset_plus_1(struct state_field *f)
{
    f->offset++;
}

static void offset_minus_1(struct state_field *f)
{
    f->offset--;
}

static void since_3(struct state_field *f)
{
    f->since = 3;
}

static void since_0(struct state_field *f)
{
    f->since = 0;
}

static void reset_wide(struct state_field *f)
{
    f->reset = 0x100;
}

static void name_of_ram(struct state_field *f)
{
    f->name = "ram";
}

static void no_name(struct state_field *f)
{
    f->name = NULL;
}

static void width_3(struct state_field *f)
{
    f->width = 3;
}

static void count_0(struct state_field *f)
{
    f->count = 0;
}

static void unknown_kind(struct state_field *f)
{
    f->kind = 9;
}

static void no_table(struct state_field *f)
{
    f->nested = NULL;
}

static void other_table(struct state_field *f)
{
    f->nested = &demo_table;
}

static void short_table(struct state_field *f)
{
    f->count = 1;
}

static void test_check(void)
{
    char why[256] = "x";

    is_int(state_table_check(&demo_table, why, sizeof(why)), 0, "a sound table passes");
    is_str(why, "", "without a complaint");
    test_refused(2, changed(2, offset_plus_1), "demo.alarm is at 5", "a gap");
    test_refused(3, changed(3, offset_minus_1), "demo.counters is at 7", "an overlap");
    test_refused(2, changed(2, since_3), "version 3", "a field from the future");
    test_refused(2, changed(2, since_0), "version 0", "a field from version 0");
    test_refused(0, changed(0, reset_wide), "reset value", "a reset value too wide");
    test_refused(0, changed(0, name_of_ram), "demo.ram occurs twice", "a name used twice");
    test_refused(0, changed(0, no_name), "has no name", "a field without name");
    test_refused(2, changed(2, width_3), "3 bytes", "an integer of three bytes");
    test_refused(2, changed(2, count_0), "is empty", "a field of no elements");
    test_refused(4, changed(4, unknown_kind), "unknown kind", "an unknown kind");
    test_refused(5, changed(5, no_table), "without a table", "a struct without table");
    test_refused(5, changed(5, other_table), "describes", "a table of another size");
    test_refused(5, changed(5, short_table), "the struct at", "a struct described in part");
}

static void test_check_nested(void)
{
    struct state_field self_field = {.name = "self", .width = 4, .count = 1, .since = 1};
    struct state_table self = {"self", 4, 1, 1, &self_field};
    struct state_field inner_fields[ARRAY_LEN(line_fields)];
    struct state_table inner = line_table;
    char why[256];

    self_field.kind = STATE_KIND_STRUCT;
    self_field.nested = &self;
    is_int(state_table_check(&self, why, sizeof(why)), -EINVAL, "a table that contains itself");
    memcpy(inner_fields, line_fields, sizeof(inner_fields));
    inner_fields[1].since = 2;
    inner.fields = inner_fields;
    struct state_field outer = demo_fields[5];
    outer.nested = &inner;
    test_refused(5, outer, "line.mask", "a fault inside a nested table");
}

static void test_print(void)
{
    struct demo_state state;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    state_reset(&demo_table, &state);
    state.ram[39] = 0xab;
    state_print(out, &demo_table, &state, 2);
    fclose(out);
    is_str(text,
           "  index = 0x7\n"
           "  alarm = 0xdeadbeef\n"
           "  counters = 0xffffffffffffffff 0xffffffffffffffff\n"
           "  ram = 40 bytes\n"
           "      0000: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n"
           "      *\n"
           "      0020: 00 00 00 00 00 00 00 ab\n"
           "  lines[0]:\n"
           "      level = 0x1234\n"
           "      mask = 0xff\n"
           "  lines[1]:\n"
           "      level = 0x1234\n"
           "      mask = 0xff\n",
           "printed for people");
    free(text);
}

int main(void)
{
    test_reset();
    test_check();
    test_check_nested();
    test_print();
    return tap_done();
}

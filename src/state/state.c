/* SPDX-License-Identifier: Apache-2.0 */
#include "state/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "base/units.h"

/* Deeper nesting than this is a table that contains itself. */
#define NESTING_MAX      8
#define PRINT_ROW_BYTES  16
#define PRINT_ROW_VALUES 8

void state_reset(const struct state_table *table, void *state)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];
        uint8_t *p = (uint8_t *)state + field->offset;
        switch ((enum state_kind)field->kind) {
        case STATE_KIND_UINT:
            for (uint32_t n = 0; n < field->count; n++)
                store_le(p + (size_t)n * field->width, field->reset, field->width);
            break;
        case STATE_KIND_STRUCT:
            for (uint32_t n = 0; n < field->count; n++)
                state_reset(field->nested, p + (size_t)n * field->width);
            break;
        case STATE_KIND_BYTES:
        case STATE_KIND_PAD:
            memset(p, 0, (size_t)field->width * field->count);
            break;
        }
    }
}

static int __attribute__((format(printf, 3, 4)))
complain(char *why, size_t why_len, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, why_len, fmt, args);
    va_end(args);
    return -EINVAL;
}

static int table_check(const struct state_table *table, int depth, char *why, size_t why_len);

/* What can be said of one field alone; its place was checked by the caller. */
static int field_check(const struct state_table *table, const struct state_field *field, int depth,
                       char *why, size_t why_len)
{
    const char *tn = table->name, *fn = field->name;

    if (field->count == 0 || field->width == 0)
        return complain(why, why_len, "%s.%s is empty: width %u, count %u", tn, fn, field->width,
                        field->count);
    if (field->since == 0 || field->since > table->version)
        return complain(why, why_len, "%s.%s appeared in version %u, the table's is %u", tn, fn,
                        field->since, table->version);
    switch (field->kind) {
    case STATE_KIND_UINT:
        if (field->width > 8 || !is_power_of_two(field->width))
            return complain(why, why_len, "%s.%s is an integer of %u bytes", tn, fn, field->width);
        if (field->width < 8 && field->reset >> (field->width * 8) != 0)
            return complain(why, why_len, "%s.%s: the reset value exceeds %u bytes", tn, fn,
                            field->width);
        return 0;
    case STATE_KIND_BYTES:
    case STATE_KIND_PAD:
        if (field->width != 1)
            return complain(why, why_len, "%s.%s: bytes of width %u", tn, fn, field->width);
        return 0;
    case STATE_KIND_STRUCT:
        if (!field->nested)
            return complain(why, why_len, "%s.%s is a struct without a table", tn, fn);
        if (field->nested->size_bytes != field->width)
            return complain(why, why_len, "%s.%s has %u bytes, its table %s describes %u", tn, fn,
                            field->width, field->nested->name, field->nested->size_bytes);
        return table_check(field->nested, depth + 1, why, why_len);
    default:
        return complain(why, why_len, "%s.%s is of the unknown kind %u", tn, fn, field->kind);
    }
}

static int table_check(const struct state_table *table, int depth, char *why, size_t why_len)
{
    uint64_t at = 0;

    if (!table->name || !table->name[0])
        return complain(why, why_len, "a table has no name");
    if (depth > NESTING_MAX)
        return complain(why, why_len, "%s contains itself", table->name);
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];
        if (!field->name || !field->name[0])
            return complain(why, why_len, "%s: field %zu has no name", table->name, i);
        if (field->offset != at)
            return complain(why, why_len, "%s.%s is at %u, but the fields before it end at %llu",
                            table->name, field->name, field->offset, (unsigned long long)at);
        at += (uint64_t)field->width * field->count;
        for (size_t k = 0; k < i; k++) {
            if (strcmp(table->fields[k].name, field->name) == 0)
                return complain(why, why_len, "%s.%s occurs twice", table->name, field->name);
        }
        int r = field_check(table, field, depth, why, why_len);
        if (r < 0)
            return r;
    }
    if (at != table->size_bytes)
        return complain(why, why_len, "%s: the fields end at %llu, the struct at %u", table->name,
                        (unsigned long long)at, table->size_bytes);
    return 0;
}

int state_table_check(const struct state_table *table, char *why, size_t why_len)
{
    if (why_len)
        why[0] = '\0';
    return table_check(table, 0, why, why_len);
}

static void print_uints(FILE *out, const struct state_field *field, const uint8_t *p, int indent)
{
    fprintf(out, "%*s%s =", indent, "", field->name);
    for (uint32_t n = 0; n < field->count; n++) {
        if (n > 0 && n % PRINT_ROW_VALUES == 0)
            fprintf(out, "\n%*s", indent + 3, "");
        fprintf(out, " 0x%" PRIx64, load_le(p + (size_t)n * field->width, field->width));
    }
    fputc('\n', out);
}

/* As hexdump(1) does: a run of equal rows is one row and a star. */
static void print_bytes(FILE *out, const struct state_field *field, const uint8_t *p, int indent)
{
    size_t len = field->count;
    bool starred = false;

    fprintf(out, "%*s%s =", indent, "", field->name);
    if (len <= PRINT_ROW_BYTES) {
        for (size_t i = 0; i < len; i++)
            fprintf(out, " %02x", p[i]);
        fputc('\n', out);
        return;
    }
    fprintf(out, " %zu bytes\n", len);
    for (size_t row = 0; row < len; row += PRINT_ROW_BYTES) {
        size_t n = len - row < PRINT_ROW_BYTES ? len - row : PRINT_ROW_BYTES;
        if (row > 0 && n == PRINT_ROW_BYTES && row + n < len &&
            memcmp(p + row, p + row - PRINT_ROW_BYTES, n) == 0) {
            if (!starred)
                fprintf(out, "%*s*\n", indent + 4, "");
            starred = true;
            continue;
        }
        starred = false;
        fprintf(out, "%*s%04zx:", indent + 4, "", row);
        for (size_t i = 0; i < n; i++)
            fprintf(out, " %02x", p[row + i]);
        fputc('\n', out);
    }
}

void state_print(FILE *out, const struct state_table *table, const void *state, int indent)
{
    for (size_t i = 0; i < table->field_count; i++) {
        const struct state_field *field = &table->fields[i];
        const uint8_t *p = (const uint8_t *)state + field->offset;
        switch ((enum state_kind)field->kind) {
        case STATE_KIND_UINT:
            print_uints(out, field, p, indent);
            break;
        case STATE_KIND_BYTES:
            print_bytes(out, field, p, indent);
            break;
        case STATE_KIND_STRUCT:
            for (uint32_t n = 0; n < field->count; n++) {
                if (field->count == 1)
                    fprintf(out, "%*s%s:\n", indent, "", field->name);
                else
                    fprintf(out, "%*s%s[%u]:\n", indent, "", field->name, n);
                state_print(out, field->nested, p + (size_t)n * field->width, indent + 4);
            }
            break;
        case STATE_KIND_PAD:
            break;
        }
    }
}

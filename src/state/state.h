/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one description of state. All guest-visible state of a device lives in one plain struct, and
 * one const table describes every member of it: reset, save, restore, inspection and the device
 * reference are driven by that table. Pointers, descriptors, locks and caches live outside the
 * struct.
 *
 *     struct rtc_state { uint8_t index; uint8_t pad_[3]; uint32_t alarm_s; uint8_t cmos[128]; };
 *
 *     static const struct state_field rtc_fields[] = {
 *         STATE_U8(struct rtc_state, index, 1, 0, "CMOS index register (port 0x70)"),
 *         STATE_PAD(struct rtc_state, pad_),
 *         STATE_U32(struct rtc_state, alarm_s, 1, 0, "Next alarm, seconds of guest time"),
 *         STATE_BYTES(struct rtc_state, cmos, 1, "CMOS RAM"),
 *     };
 *     const struct state_table rtc_table = STATE_TABLE("rtc", struct rtc_state, 1, rtc_fields);
 *
 * The fields must tile the struct: every byte described once, in order; state_table_check() says
 * so, and each device's unit test calls it. Compiler padding is therefore made explicit.
 */
#ifndef HULL_STATE_STATE_H
#define HULL_STATE_STATE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum state_kind {
    STATE_KIND_UINT,   /* unsigned integer of 1, 2, 4 or 8 bytes, or an array of them */
    STATE_KIND_BYTES,  /* opaque bytes; reset to zero */
    STATE_KIND_STRUCT, /* one or more nested structs with a table of their own */
    STATE_KIND_PAD,    /* explicit padding: zero, not saved */
};

struct state_table;

struct state_field {
    const char *name;                 /* tag on the wire: never changes once released */
    const char *doc;                  /* one line of meaning */
    uint32_t offset;                  /* bytes into the struct */
    uint32_t width;                   /* bytes of one element */
    uint32_t count;                   /* elements; 1 for a scalar */
    uint16_t since;                   /* version of the table in which the field appeared, from 1 */
    uint8_t kind;                     /* enum state_kind */
    uint64_t reset;                   /* value of every element after reset; UINT only */
    const struct state_table *nested; /* STRUCT only */
};

struct state_table {
    const char *name; /* device type, e.g. "uart16550" */
    uint32_t size_bytes;
    uint16_t version; /* highest `since` */
    uint16_t field_count;
    const struct state_field *fields;
};

#define STATE_SIZEOF(type, member) ((uint32_t)sizeof(((type *)0)->member))

#define STATE_UINT_(type, member, width_, since_, reset_, doc_)                                    \
    {                                                                                              \
        .name = #member, .doc = (doc_), .offset = (uint32_t)offsetof(type, member),                \
        .width = (width_), .count = STATE_SIZEOF(type, member) / (width_), .since = (since_),      \
        .kind = STATE_KIND_UINT, .reset = (reset_)                                                 \
    }

/* Scalars and arrays alike: the count follows from the member's size. */
#define STATE_U8(type, member, since, reset, doc)  STATE_UINT_(type, member, 1, since, reset, doc)
#define STATE_U16(type, member, since, reset, doc) STATE_UINT_(type, member, 2, since, reset, doc)
#define STATE_U32(type, member, since, reset, doc) STATE_UINT_(type, member, 4, since, reset, doc)
#define STATE_U64(type, member, since, reset, doc) STATE_UINT_(type, member, 8, since, reset, doc)

#define STATE_BYTES(type, member, since_, doc_)                                                    \
    {                                                                                              \
        .name = #member, .doc = (doc_), .offset = (uint32_t)offsetof(type, member), .width = 1,    \
        .count = STATE_SIZEOF(type, member), .since = (since_), .kind = STATE_KIND_BYTES           \
    }

/* elem is the element type of member (its own type where member is no array). */
#define STATE_STRUCT(type, member, elem, since_, table_, doc_)                                     \
    {                                                                                              \
        .name = #member, .doc = (doc_), .offset = (uint32_t)offsetof(type, member),                \
        .width = (uint32_t)sizeof(elem),                                                           \
        .count = STATE_SIZEOF(type, member) / (uint32_t)sizeof(elem), .since = (since_),           \
        .kind = STATE_KIND_STRUCT, .nested = (table_)                                              \
    }

#define STATE_PAD(type, member)                                                                    \
    {                                                                                              \
        .name = #member, .doc = "", .offset = (uint32_t)offsetof(type, member), .width = 1,        \
        .count = STATE_SIZEOF(type, member), .since = 1, .kind = STATE_KIND_PAD                    \
    }

#define STATE_TABLE(name_, type, version_, fields_)                                                \
    {                                                                                              \
        .name = (name_), .size_bytes = (uint32_t)sizeof(type), .version = (version_),              \
        .field_count = sizeof(fields_) / sizeof((fields_)[0]), .fields = (fields_)                 \
    }

/* Set every field to its reset value, nested tables included; padding to zero. */
void state_reset(const struct state_table *table, void *state);

/*
 * Do the fields tile the struct, with unique names, since <= version, and sound widths? Nested
 * tables are checked too. Returns 0, or -EINVAL with the reason in why.
 */
int state_table_check(const struct state_table *table, char *why, size_t why_len);

/* Print "field = value" lines for people (`hull inspect`), indented by indent spaces. */
void state_print(FILE *out, const struct state_table *table, const void *state, int indent);

#endif

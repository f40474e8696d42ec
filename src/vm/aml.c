/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/aml.h"

#include <string.h>

#include "base/units.h"

/* ACPI 6.4, table 20.1. */
#define OP_ZERO       0x00
#define OP_ONE        0x01
#define OP_NAME       0x08
#define OP_BYTE       0x0a
#define OP_WORD       0x0b
#define OP_DWORD      0x0c
#define OP_STRING     0x0d
#define OP_QWORD      0x0e
#define OP_SCOPE      0x10
#define OP_BUFFER     0x11
#define OP_PACKAGE    0x12
#define OP_METHOD     0x14
#define OP_DUAL_NAME  0x2e
#define OP_MULTI_NAME 0x2f
#define OP_EXT        0x5b
#define OP_EXT_DEVICE 0x82
#define OP_IF         0xa0
#define OP_ELSE       0xa1
#define METHOD_SERIAL 0x08
#define SEGMENT_LEN   4

/* ACPI 6.4, 6.4.2 and 6.4.3. */
#define RES_IRQ         0x22 /* two bytes: edge, active high */
#define RES_IO          0x47
#define RES_END         0x79
#define RES_MEM32_FIXED 0x86
#define RES_DWORD       0x87
#define RES_WORD        0x88
#define RES_QWORD       0x8a
#define SPACE_MEMORY    0
#define SPACE_IO        1
#define SPACE_BUS       2
#define WINDOW_FIXED    0x0c /* min and max fixed, positive decode, producer */
#define MEMORY_RW       0x01 /* read-write, not cacheable */
#define IO_ENTIRE       0x03 /* ISA and non-ISA ranges */

void aml_init(struct aml *aml, void *buf, uint32_t cap)
{
    *aml = (struct aml){.bytes = buf, .cap = cap};
}

void aml_bytes(struct aml *aml, const void *bytes, uint32_t len)
{
    if (aml->overflow || len > aml->cap - aml->len) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->bytes + aml->len, bytes, len);
    aml->len += len;
}

void aml_byte(struct aml *aml, uint8_t value)
{
    aml_bytes(aml, &value, 1);
}

static void put(struct aml *aml, uint64_t value, uint32_t len)
{
    aml_bytes(aml, &value, len);
}

/* Put bytes in front of what was appended since `at`. */
static void insert(struct aml *aml, uint32_t at, const uint8_t *bytes, uint32_t len)
{
    uint32_t tail = aml->len - at;

    aml_bytes(aml, bytes, len);
    if (aml->overflow)
        return;
    memmove(aml->bytes + at + len, aml->bytes + at, tail);
    memcpy(aml->bytes + at, bytes, len);
}

static void put_segment(struct aml *aml, const char *text, size_t len)
{
    char segment[SEGMENT_LEN] = {'_', '_', '_', '_'};

    memcpy(segment, text, len < SEGMENT_LEN ? len : SEGMENT_LEN);
    aml_bytes(aml, segment, SEGMENT_LEN);
}

void aml_path(struct aml *aml, const char *path)
{
    unsigned segments = 1;

    if (*path == '\\')
        aml_byte(aml, (uint8_t)*path++);
    if (*path == '\0') { /* the root itself: NullName */
        aml_byte(aml, 0);
        return;
    }
    for (const char *p = path; *p; p++)
        segments += *p == '.';
    if (segments == 2) {
        aml_byte(aml, OP_DUAL_NAME);
    } else if (segments > 2) {
        aml_byte(aml, OP_MULTI_NAME);
        aml_byte(aml, (uint8_t)segments);
    }
    for (unsigned i = 0; i < segments; i++) {
        size_t len = strcspn(path, ".");
        put_segment(aml, path, len);
        path += len + 1;
    }
}

/* Encodes into out and returns the length. */
static uint32_t encode_integer(uint64_t value, uint8_t out[9])
{
    if (value <= 1) {
        out[0] = value ? OP_ONE : OP_ZERO;
        return 1;
    }
    store_le64(out + 1, value);
    if (value <= UINT8_MAX) {
        out[0] = OP_BYTE;
        return 2;
    }
    if (value <= UINT16_MAX) {
        out[0] = OP_WORD;
        return 3;
    }
    if (value <= UINT32_MAX) {
        out[0] = OP_DWORD;
        return 5;
    }
    out[0] = OP_QWORD;
    return 9;
}

void aml_integer(struct aml *aml, uint64_t value)
{
    uint8_t bytes[9];

    aml_bytes(aml, bytes, encode_integer(value, bytes));
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, OP_STRING);
    aml_bytes(aml, text, (uint32_t)strlen(text) + 1);
}

static uint32_t hex_digit(char c)
{
    return (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

void aml_eisaid(struct aml *aml, const char *id)
{
    uint32_t v = 0;

    for (unsigned i = 0; i < 3; i++) /* three letters of 5 bits */
        v = v << 5 | (uint32_t)(id[i] - 'A' + 1);
    for (unsigned i = 3; i < 7; i++)
        v = v << 4 | hex_digit(id[i]);
    /* Always as a DWord: that is the type of the object. */
    aml_byte(aml, OP_DWORD);
    put(aml, __builtin_bswap32(v), 4);
}

void aml_name(struct aml *aml, const char *path)
{
    aml_byte(aml, OP_NAME);
    aml_path(aml, path);
}

void aml_name_integer(struct aml *aml, const char *path, uint64_t value)
{
    aml_name(aml, path);
    aml_integer(aml, value);
}

void aml_name_eisaid(struct aml *aml, const char *path, const char *id)
{
    aml_name(aml, path);
    aml_eisaid(aml, id);
}

void aml_name_string(struct aml *aml, const char *path, const char *text)
{
    aml_name(aml, path);
    aml_string(aml, text);
}

/* A mark is where the PkgLength goes. */
uint32_t aml_scope_begin(struct aml *aml, const char *path)
{
    aml_byte(aml, OP_SCOPE);
    uint32_t mark = aml->len;
    aml_path(aml, path);
    return mark;
}

uint32_t aml_device_begin(struct aml *aml, const char *name)
{
    aml_byte(aml, OP_EXT);
    aml_byte(aml, OP_EXT_DEVICE);
    uint32_t mark = aml->len;
    aml_path(aml, name);
    return mark;
}

uint32_t aml_method_begin(struct aml *aml, const char *name, unsigned args, bool serialized)
{
    aml_byte(aml, OP_METHOD);
    uint32_t mark = aml->len;
    aml_path(aml, name);
    aml_byte(aml, (uint8_t)(args | (serialized ? METHOD_SERIAL : 0)));
    return mark;
}

uint32_t aml_package_begin(struct aml *aml, uint8_t elements)
{
    aml_byte(aml, OP_PACKAGE);
    uint32_t mark = aml->len;
    aml_byte(aml, elements);
    return mark;
}

uint32_t aml_if_begin(struct aml *aml)
{
    aml_byte(aml, OP_IF);
    return aml->len;
}

uint32_t aml_else_begin(struct aml *aml)
{
    aml_byte(aml, OP_ELSE);
    return aml->len;
}

/* PkgLength counts itself: 6 bits in one byte, or 4 bits and a byte more for each further 8
 * (20.2.4). */
void aml_end(struct aml *aml, uint32_t mark)
{
    uint32_t body = aml->len - mark;
    uint8_t bytes[4];
    uint32_t extra = body + 1 <= 0x3f ? 0 : body + 2 <= 0xfff ? 1 : body + 3 <= 0xfffff ? 2 : 3;
    uint32_t total = body + 1 + extra;

    if (extra == 0) {
        bytes[0] = (uint8_t)total;
    } else {
        bytes[0] = (uint8_t)(extra << 6 | (total & 0xf));
        for (uint32_t i = 1; i <= extra; i++)
            bytes[i] = (uint8_t)(total >> (8 * i - 4));
    }
    insert(aml, mark, bytes, 1 + extra);
}

uint32_t aml_resources_begin(struct aml *aml)
{
    aml_byte(aml, OP_BUFFER);
    return aml->len;
}

void aml_resources_end(struct aml *aml, uint32_t mark)
{
    uint8_t size[9];

    aml_byte(aml, RES_END);
    aml_byte(aml, 0); /* no checksum */
    insert(aml, mark, size, encode_integer(aml->len - mark, size));
    aml_end(aml, mark);
}

void aml_io(struct aml *aml, uint16_t base, uint8_t len)
{
    aml_byte(aml, RES_IO);
    aml_byte(aml, 1); /* decodes 16 bits */
    put(aml, base, 2);
    put(aml, base, 2);
    aml_byte(aml, 1); /* alignment */
    aml_byte(aml, len);
}

void aml_irq(struct aml *aml, unsigned irq)
{
    aml_byte(aml, RES_IRQ);
    put(aml, 1u << irq, 2);
}

void aml_memory32_fixed(struct aml *aml, uint32_t base, uint32_t len)
{
    aml_byte(aml, RES_MEM32_FIXED);
    put(aml, 9, 2);
    aml_byte(aml, 1); /* writable */
    put(aml, base, 4);
    put(aml, len, 4);
}

/* Address space descriptors of any width: granularity, minimum, maximum, translation, length
 * (6.4.3.5). */
static void put_window(struct aml *aml, uint8_t tag, uint8_t space, uint8_t specific,
                       uint64_t first, uint64_t last)
{
    uint32_t width = tag == RES_WORD ? 2 : tag == RES_DWORD ? 4 : 8;

    aml_byte(aml, tag);
    put(aml, 3 + 5 * width, 2);
    aml_byte(aml, space);
    aml_byte(aml, WINDOW_FIXED);
    aml_byte(aml, specific);
    put(aml, 0, width);
    put(aml, first, width);
    put(aml, last, width);
    put(aml, 0, width);
    put(aml, last - first + 1, width);
}

void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last)
{
    put_window(aml, RES_WORD, SPACE_BUS, 0, first, last);
}

void aml_window_io(struct aml *aml, uint16_t first, uint16_t last)
{
    put_window(aml, RES_WORD, SPACE_IO, IO_ENTIRE, first, last);
}

void aml_window_memory32(struct aml *aml, uint32_t first, uint32_t last)
{
    put_window(aml, RES_DWORD, SPACE_MEMORY, MEMORY_RW, first, last);
}

void aml_window_memory64(struct aml *aml, uint64_t first, uint64_t last)
{
    put_window(aml, RES_QWORD, SPACE_MEMORY, MEMORY_RW, first, last);
}

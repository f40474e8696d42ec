/* SPDX-License-Identifier: Apache-2.0 */
/* SMBIOS Reference Specification 3.3 (DMTF DSP0134). Section numbers are its. */
#include <errno.h>
#include <stdio.h>

#include "base/err.h"
#include "vm/acpi.h"
#include "vm/layout.h"

#define ENTRY_32_LEN  31 /* 5.2.1 */
#define ENTRY_64_LEN  24 /* 5.2.2 */
#define ENTRIES_LEN   64 /* both, each at a multiple of 16 */
#define ENTRY_64_AT   0
#define ENTRY_32_AT   32

#define STRINGS_MAX   8
#define MANUFACTURER  "Hull"
#define RELEASE_DATE  "01/01/2026" /* Linux trusts the resources of machines of our days */

#define H_BIOS        0x0000
#define H_SYSTEM      0x0100
#define H_CHASSIS     0x0300
#define H_CPU         0x0400
#define H_ARRAY       0x1000
#define H_DIMM        0x1100
#define H_MAPPED_LOW  0x1300
#define H_MAPPED_HIGH 0x1301
#define H_BOOT        0x2000
#define H_END         0x7f00
#define H_NONE        0xfffe

#define UNKNOWN       2 /* in the enumerations of most fields */
#define OTHER         1
#define SAFE          3

/* The structure table, and the structure that is being written: fields by offset (6.1.2), then its
 * strings, numbered from 1 on. */
struct writer {
    uint8_t *bytes;
    uint64_t len, used;
    uint16_t count, longest;
    bool overflow;
    uint8_t field[96];
    uint8_t field_len;
    const char *strings[STRINGS_MAX];
    uint8_t string_count;
};

static void begin(struct writer *w, uint8_t type, uint8_t len, uint16_t handle)
{
    memset(w->field, 0, sizeof(w->field));
    w->field[0] = type;
    w->field[1] = len;
    store_le16(w->field + 2, handle);
    w->field_len = len;
    w->string_count = 0;
}

static void set8(struct writer *w, unsigned offset, uint8_t value)
{
    w->field[offset] = value;
}

static void set16(struct writer *w, unsigned offset, uint16_t value)
{
    store_le16(w->field + offset, value);
}

static void set32(struct writer *w, unsigned offset, uint32_t value)
{
    store_le32(w->field + offset, value);
}

static void set64(struct writer *w, unsigned offset, uint64_t value)
{
    store_le64(w->field + offset, value);
}

/* An empty string is 0, "not given". */
static void set_string(struct writer *w, unsigned offset, const char *text)
{
    if (!text || !*text)
        return;
    w->strings[w->string_count++] = text;
    w->field[offset] = w->string_count;
}

static void append(struct writer *w, const void *bytes, uint64_t len)
{
    if (w->overflow || !range_fits(w->used, len, w->len)) {
        w->overflow = true;
        return;
    }
    memcpy(w->bytes + w->used, bytes, len);
    w->used += len;
}

static void end(struct writer *w)
{
    uint64_t start = w->used;

    append(w, w->field, w->field_len);
    for (unsigned i = 0; i < w->string_count; i++)
        append(w, w->strings[i], strlen(w->strings[i]) + 1);
    /* A string set ends with an empty string; without strings that takes two zeros. */
    append(w, "\0", w->string_count ? 1 : 2);
    w->count++;
    if (w->used - start > w->longest)
        w->longest = (uint16_t)(w->used - start);
}

static void add_bios(struct writer *w, const struct smbios_params *params) /* 7.1 */
{
    begin(w, 0, 0x1a, H_BIOS);
    set_string(w, 0x04, MANUFACTURER);
    set_string(w, 0x05, params->version);
    set16(w, 0x06, LAYOUT_BIOS_AREA >> 4);
    set_string(w, 0x08, RELEASE_DATE);
    set8(w, 0x09, (uint8_t)(LAYOUT_BIOS_AREA_LEN / (64 * KIB) - 1));
    set64(w, 0x0a, 1 << 3); /* characteristics are not given */
    set8(w, 0x12, 1);       /* ACPI */
    set8(w, 0x13, 1 << 4);  /* a virtual machine */
    set8(w, 0x14, 0xff);    /* no BIOS release */
    set8(w, 0x15, 0xff);
    set8(w, 0x16, 0xff);
    set8(w, 0x17, 0xff);
    end(w);
}

static void add_system(struct writer *w, const struct smbios_params *params) /* 7.2 */
{
    const uint8_t *u = params->uuid;

    begin(w, 1, 0x1b, H_SYSTEM);
    set_string(w, 0x04, MANUFACTURER);
    set_string(w, 0x05, params->product_name);
    set_string(w, 0x06, params->version);
    /* 7.2.1: the first three fields of the UUID are little-endian. */
    set32(w, 0x08, __builtin_bswap32(load_le32(u)));
    set16(w, 0x0c, __builtin_bswap16(load_le16(u + 4)));
    set16(w, 0x0e, __builtin_bswap16(load_le16(u + 6)));
    memcpy(w->field + 0x10, u + 8, 8);
    set8(w, 0x18, 6);                     /* woken by the power switch */
    set_string(w, 0x1a, params->vm_name); /* family: where the guest finds its VM's name */
    end(w);
}

static void add_chassis(struct writer *w, const struct smbios_params *params) /* 7.4 */
{
    begin(w, 3, 0x16, H_CHASSIS);
    set_string(w, 0x04, MANUFACTURER);
    set8(w, 0x05, OTHER);
    set_string(w, 0x06, params->version);
    set8(w, 0x09, SAFE);
    set8(w, 0x0a, SAFE);
    set8(w, 0x0b, SAFE);
    set8(w, 0x0c, UNKNOWN);
    end(w);
}

static void add_cpu(struct writer *w, const struct smbios_params *params) /* 7.5 */
{
    uint8_t cores = params->cpus < 0xff ? (uint8_t)params->cpus : 0xff; /* 0xff: see cores 2 */
    uint16_t cores2 = params->cpus < 0xffff ? (uint16_t)params->cpus : 0xfffe;

    begin(w, 4, 0x30, H_CPU);
    set_string(w, 0x04, "CPU 0");
    set8(w, 0x05, 3); /* central processor */
    set8(w, 0x06, OTHER);
    set_string(w, 0x07, MANUFACTURER);
    set_string(w, 0x10, params->version);
    set8(w, 0x18, 0x41); /* socket populated, enabled */
    set8(w, 0x19, OTHER);
    set16(w, 0x1a, 0xffff); /* caches: not given */
    set16(w, 0x1c, 0xffff);
    set16(w, 0x1e, 0xffff);
    set8(w, 0x23, cores);
    set8(w, 0x24, cores);
    set8(w, 0x25, cores);
    set16(w, 0x26, 1 << 2); /* 64-bit */
    set16(w, 0x28, OTHER);
    set16(w, 0x2a, cores2);
    set16(w, 0x2c, cores2);
    set16(w, 0x2e, cores2);
    end(w);
}

static void add_memory_array(struct writer *w, const struct smbios_params *params) /* 7.17 */
{
    uint64_t kib = params->ram_bytes / KIB;

    begin(w, 16, 0x17, H_ARRAY);
    set8(w, 0x04, OTHER);
    set8(w, 0x05, 3);       /* system memory */
    set8(w, 0x06, UNKNOWN); /* whether the host's memory has ECC */
    if (kib < 0x80000000) {
        set32(w, 0x07, (uint32_t)kib);
    } else {
        set32(w, 0x07, 0x80000000);
        set64(w, 0x0f, params->ram_bytes);
    }
    set16(w, 0x0b, H_NONE);
    set16(w, 0x0d, 1);
    end(w);
}

static void add_memory_device(struct writer *w, const struct smbios_params *params) /* 7.18 */
{
    uint64_t mib = params->ram_bytes / MIB;

    begin(w, 17, 0x5c, H_DIMM);
    set16(w, 0x04, H_ARRAY);
    set16(w, 0x06, H_NONE);
    set16(w, 0x08, 0xffff); /* widths: unknown */
    set16(w, 0x0a, 0xffff);
    if (mib < 0x7fff) {
        set16(w, 0x0c, (uint16_t)mib);
    } else {
        set16(w, 0x0c, 0x7fff);
        set32(w, 0x1c, mib < 0x7fffffff ? (uint32_t)mib : 0x7fffffff);
    }
    set8(w, 0x0e, 9); /* DIMM */
    set_string(w, 0x10, "DIMM 0");
    set8(w, 0x12, 7);       /* RAM */
    set16(w, 0x13, 1 << 1); /* type detail: other */
    set_string(w, 0x17, MANUFACTURER);
    set8(w, 0x28, 3);                  /* technology: DRAM */
    set16(w, 0x29, 1 << 3);            /* operating mode: volatile memory */
    set64(w, 0x3c, params->ram_bytes); /* volatile size */
    end(w);
}

static void add_mapping(struct writer *w, uint16_t handle, uint64_t base, uint64_t len) /* 7.20 */
{
    uint64_t last = base + len - 1;

    begin(w, 19, 0x1f, handle);
    if (last / KIB < UINT32_MAX) {
        set32(w, 0x04, (uint32_t)(base / KIB));
        set32(w, 0x08, (uint32_t)(last / KIB));
    } else {
        set32(w, 0x04, UINT32_MAX);
        set32(w, 0x08, UINT32_MAX);
        set64(w, 0x0f, base);
        set64(w, 0x17, last);
    }
    set16(w, 0x0c, H_ARRAY);
    set8(w, 0x0e, 1); /* one device */
    end(w);
}

static void add_structures(struct writer *w, const struct smbios_params *params)
{
    uint64_t low = params->ram_bytes < LAYOUT_RAM_LOW_MAX ? params->ram_bytes : LAYOUT_RAM_LOW_MAX;

    add_bios(w, params);
    add_system(w, params);
    add_chassis(w, params);
    add_cpu(w, params);
    add_memory_array(w, params);
    add_memory_device(w, params);
    add_mapping(w, H_MAPPED_LOW, 0, low);
    if (params->ram_bytes > low)
        add_mapping(w, H_MAPPED_HIGH, LAYOUT_RAM_HIGH_BASE, params->ram_bytes - low);
    begin(w, 32, 0x0b, H_BOOT); /* 7.33; status 0: no error */
    end(w);
    begin(w, 127, 0x04, H_END);
    end(w);
}

static uint8_t checksum(const uint8_t *bytes, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

static void write_entries(uint8_t *area, const struct writer *w, uint64_t table_gpa)
{
    uint8_t *e = area + ENTRY_64_AT;
    memcpy(e, "_SM3_", 5);
    e[6] = ENTRY_64_LEN;
    e[7] = 3; /* 3.3.0 */
    e[8] = 3;
    e[10] = 1; /* revision of the entry point */
    store_le32(e + 12, (uint32_t)w->used);
    store_le64(e + 16, table_gpa);
    e[5] = checksum(e, ENTRY_64_LEN);

    /* For scanners that know only the old entry point. */
    e = area + ENTRY_32_AT;
    memcpy(e, "_SM_", 4);
    e[5] = ENTRY_32_LEN;
    e[6] = 3;
    e[7] = 3;
    store_le16(e + 8, w->longest);
    memcpy(e + 16, "_DMI_", 5);
    store_le16(e + 22, (uint16_t)w->used);
    store_le32(e + 24, (uint32_t)table_gpa);
    store_le16(e + 28, w->count);
    e[30] = 0x33; /* BCD revision */
    e[21] = checksum(e + 16, ENTRY_32_LEN - 16);
    e[4] = checksum(e, ENTRY_32_LEN);
}

int smbios_build(struct mem *mem, const struct smbios_params *params, gpa_t area, uint64_t len,
                 struct err *err)
{
    if (area.a % 16 || !range_fits(area.a, len, 4 * GIB) || len < ENTRIES_LEN)
        return err_set(err, EINVAL, "bad place for the SMBIOS tables: 0x%llx",
                       (unsigned long long)area.a);
    uint8_t *host = mem_ptr(mem, area, len, MEM_WRITE);
    if (!host)
        return err_set(err, EFAULT, "the SMBIOS tables at 0x%llx are not in RAM",
                       (unsigned long long)area.a);
    struct writer w = {.bytes = host + ENTRIES_LEN, .len = len - ENTRIES_LEN};
    if (w.len > UINT16_MAX)
        w.len = UINT16_MAX; /* of the 32-bit entry point */
    memset(host, 0, ENTRIES_LEN);
    add_structures(&w, params);
    if (w.overflow)
        return err_set(err, ENOSPC, "the SMBIOS tables take more than %llu bytes",
                       (unsigned long long)len);
    write_entries(host, &w, area.a + ENTRIES_LEN);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "vm/acpi.h"

#define AREA GPA(0xf8000)
#define LEN  (32 * KIB)

static struct mem *mem;

static const struct smbios_params params = {
    .product_name = "Hull",
    .vm_name = "web-1",
    .version = "0.1.0",
    .uuid = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
             0xee, 0xff},
    .cpus = 300,
    .ram_bytes = 48 * GIB,
};

static bool sums_to_zero(const uint8_t *bytes, uint64_t len)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return sum == 0;
}

/* The structure behind this one: over its fields and its strings. */
static const uint8_t *next_structure(const uint8_t *s)
{
    s += s[1];
    while (s[0] || s[1])
        s++;
    return s + 2;
}

/* The n-th string of a structure. */
static const char *string_of(const uint8_t *s, unsigned n)
{
    const char *text = (const char *)s + s[1];
    while (--n)
        text += strlen(text) + 1;
    return text;
}

static void test_entries(void)
{
    const uint8_t *e = mem_ptr(mem, AREA, LEN, MEM_READ);

    ok(memcmp(e, "_SM3_", 5) == 0 && sums_to_zero(e, e[6]), "64-bit entry point");
    is_int(load_le64(e + 16), AREA.a + 64, "the structures follow");
    const uint8_t *old = e + 32;
    ok(memcmp(old, "_SM_", 4) == 0 && sums_to_zero(old, old[5]), "32-bit entry point");
    ok(memcmp(old + 16, "_DMI_", 5) == 0 && sums_to_zero(old + 16, 15), "intermediate anchor");
    is_int(load_le32(old + 24), load_le64(e + 16), "the same structures");
    is_int(load_le16(old + 22), load_le32(e + 12), "the same length");

    const uint8_t *s = e + 64, *end = s + load_le32(e + 12);
    unsigned count = 0;
    uint64_t longest = 0;
    uint32_t types = 0;
    bool last_is_end = false;
    while (s < end) {
        const uint8_t *next = next_structure(s);
        if ((uint64_t)(next - s) > longest)
            longest = (uint64_t)(next - s);
        if (s[0] < 32)
            types |= 1u << s[0];
        last_is_end = s[0] == 127;
        s = next;
        count++;
    }
    ok(s == end && last_is_end, "structures end with type 127 at the end");
    is_int(count, load_le16(old + 28), "their number");
    is_int(longest, load_le16(old + 8), "the longest");
    is_int(types, 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 16 | 1 << 17 | 1 << 19, "the types");
}

static void test_system(void)
{
    static const uint8_t uuid[16] = {0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66,
                                     0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    const uint8_t *s = mem_ptr(mem, gpa_add(AREA, 64), LEN - 64, MEM_READ);

    while (s[0] != 1)
        s = next_structure(s);
    ok(memcmp(s + 8, uuid, 16) == 0, "UUID, three fields little-endian");
    is_str(string_of(s, s[5]), "Hull", "product name");
    is_str(string_of(s, s[0x1a]), "web-1", "VM name");
    while (s[0] != 4)
        s = next_structure(s);
    is_int(s[0x23], 0xff, "core count: see the wide one");
    is_int(load_le16(s + 0x2a), 300, "which says 300");
    while (s[0] != 17)
        s = next_structure(s);
    is_int(load_le16(s + 0x0c), 0x7fff, "memory size: see the extended one");
    is_int(load_le32(s + 0x1c), 48 * 1024, "which says 48 GiB");
}

static void test_refused(void)
{
    struct err err = ERR_INIT;

    is_int(smbios_build(mem, &params, AREA, 32, &err), -EINVAL, "no room for the entry points");
    is_int(smbios_build(mem, &params, AREA, 200, &err), -ENOSPC, "no room for the structures");
    is_int(smbios_build(mem, &params, GPA(0xf8004), LEN, &err), -EINVAL, "misaligned");
    is_int(smbios_build(mem, &params, GPA(GIB), LEN, &err), -EFAULT, "not in RAM");
}

/* The first line of what a command prints. */
static const char *first_line(const char *command, char *buf, int len)
{
    FILE *in = popen(command, "r");
    buf[0] = '\0';
    if (in) {
        if (!fgets(buf, len, in))
            buf[0] = '\0';
        pclose(in);
    }
    buf[strcspn(buf, "\n")] = '\0';
    return buf;
}

/*
 * dmidecode reads a dump of its own making: the entry point, with its address made 0x20 and its
 * checksum right, and at 0x20 the structures.
 */
static void test_dmidecode(void)
{
    uint8_t dump[32 * KIB] = {0};
    char path[] = "/tmp/hull-smbios-XXXXXX", command[128], line[128];
    const uint8_t *area = mem_ptr(mem, AREA, LEN, MEM_READ);
    uint32_t len = load_le32(area + 12);

    if (system("dmidecode --version > /dev/null 2>&1") != 0) {
        tap_skip("dmidecode", "dmidecode is not installed");
        return;
    }
    memcpy(dump, area, 24);
    store_le64(dump + 16, 0x20);
    dump[5] = 0;
    for (unsigned i = 0; i < 24; i++)
        dump[5] = (uint8_t)(dump[5] - (i == 5 ? 0 : dump[i]));
    memcpy(dump + 32, area + 64, len);
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, dump, 32 + len) != (ssize_t)len + 32) {
        ok(false, "dump is written");
        return;
    }
    close(fd);
    snprintf(command, sizeof(command), "dmidecode --from-dump %s -s system-uuid", path);
    is_str(first_line(command, line, sizeof(line)), "00112233-4455-6677-8899-aabbccddeeff",
           "dmidecode: UUID");
    snprintf(command, sizeof(command), "dmidecode --from-dump %s -t 17 | grep '\tSize'", path);
    is_str(first_line(command, line, sizeof(line)), "\tSize: 48 GB", "dmidecode: memory");
    snprintf(command, sizeof(command),
             "dmidecode --from-dump %s 2>&1 | grep -iE 'wrong|bad|broken|invalid|truncated'", path);
    is_str(first_line(command, line, sizeof(line)), "", "dmidecode: no complaint");
    unlink(path);
}

int main(void)
{
    const struct mem_options options = {0};
    struct err err = ERR_INIT;

    if (mem_new(&mem, &options, &err) < 0 || mem_add_ram(mem, "ram-low", GPA(0), 2 * MIB, &err) < 0)
        return 1;
    is_int(smbios_build(mem, &params, AREA, LEN, &err), 0, "tables are built");
    test_entries();
    test_system();
    test_dmidecode();
    test_refused();
    mem_free(mem);
    return tap_done();
}

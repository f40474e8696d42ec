/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/aml.h"

#include "base/tap.h"
#include "base/units.h"

/* The expected bytes follow ACPI 6.4, chapter 20, by hand. */
static bool is_bytes(const struct aml *a, const void *want, uint32_t len)
{
    return !a->overflow && a->len == len && memcmp(a->bytes, want, len) == 0;
}

static void test_constants(void)
{
    uint8_t buf[64];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    aml_integer(&a, 0);
    aml_integer(&a, 1);
    aml_integer(&a, 2);
    aml_integer(&a, 0x100);
    aml_integer(&a, 0x10000);
    aml_integer(&a, 0x100000000);
    ok(is_bytes(&a,
                "\x00\x01\x0a\x02\x0b\x00\x01\x0c\x00\x00\x01\x00\x0e\x00\x00\x00\x00\x01\x00\x00"
                "\x00",
                21),
       "integers take the shortest form");
    aml_init(&a, buf, sizeof(buf));
    aml_eisaid(&a, "PNP0A03");
    ok(is_bytes(&a, "\x0c\x41\xd0\x0a\x03", 5), "EISA ID");
    aml_init(&a, buf, sizeof(buf));
    aml_string(&a, "ab");
    ok(is_bytes(&a,
                "\x0d"
                "ab\0",
                4),
       "string");
}

static void test_paths(void)
{
    uint8_t buf[64];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    aml_path(&a, "\\_SB");
    ok(is_bytes(&a, "\\_SB_", 5), "rooted name, padded");
    aml_init(&a, buf, sizeof(buf));
    aml_path(&a, "_SB.PCI0");
    ok(is_bytes(&a, "\x2e_SB_PCI0", 9), "two segments");
    aml_init(&a, buf, sizeof(buf));
    aml_path(&a, "\\A.B.C");
    ok(is_bytes(&a,
                "\\\x2f\x03"
                "A___B___C___",
                15),
       "three segments");
    aml_init(&a, buf, sizeof(buf));
    aml_path(&a, "\\");
    ok(is_bytes(&a, "\\\0", 2), "the root");
}

/* PkgLength of a package whose body is this long, and the number of its bytes. */
static uint32_t package_length(uint32_t body, uint32_t *bytes)
{
    static uint8_t buf[0x110000];
    static uint8_t zeros[0x108000];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    uint32_t mark = aml_package_begin(&a, 0);
    aml_bytes(&a, zeros, body - 1);
    aml_end(&a, mark);
    *bytes = (buf[1] >> 6) + 1u;
    if (*bytes == 1)
        return buf[1];
    uint32_t len = buf[1] & 0xf;
    for (uint32_t i = 1; i < *bytes; i++)
        len |= (uint32_t)buf[1 + i] << (8 * i - 4);
    return a.len == len + 1 ? len : 0;
}

static void test_lengths(void)
{
    static const struct {
        uint32_t body, bytes;
    } cases[] = {
        {1,       1},
        {62,      1},
        {63,      2},
        {4093,    2},
        {4094,    3},
        {1048572, 3},
        {1048573, 4},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        uint32_t bytes;
        is_int(package_length(cases[i].body, &bytes), cases[i].body + cases[i].bytes, "PkgLength");
        is_int(bytes, cases[i].bytes, "... in as few bytes as can be");
    }
}

static void test_resources(void)
{
    uint8_t buf[64];
    struct aml a;

    aml_init(&a, buf, sizeof(buf));
    uint32_t mark = aml_resources_begin(&a);
    aml_io(&a, 0x3f8, 8);
    aml_irq(&a, 4);
    aml_resources_end(&a, mark);
    ok(is_bytes(&a, "\x11\x10\x0a\x0d\x47\x01\xf8\x03\xf8\x03\x01\x08\x22\x10\x00\x79\x00", 17),
       "a resource template");
}

static void test_overflow(void)
{
    uint8_t buf[12];
    struct aml a;

    memset(buf, 0xee, sizeof(buf));
    aml_init(&a, buf, 8);
    uint32_t mark = aml_device_begin(&a, "DEV0");
    aml_name_integer(&a, "_UID", 5);
    aml_end(&a, mark);
    ok(a.overflow, "overflow is remembered");
    ok(a.len <= 8 && buf[8] == 0xee, "and nothing is written beyond");
    memset(buf, 0xee, sizeof(buf));
    aml_init(&a, buf, 6);
    mark = aml_device_begin(&a, "DEV0");
    aml_end(&a, mark);
    ok(a.overflow && buf[6] == 0xee, "nor when a length is put in");
}

int main(void)
{
    test_constants();
    test_paths();
    test_lengths();
    test_resources();
    test_overflow();
    return tap_done();
}

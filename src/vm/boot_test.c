/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot.h"

#include <zlib.h>

#include "vm/boot_fixture.h"

static uint8_t bytes[IMAGE_ELF_MAX];

/* --- the memory map --- */

/* Sorted, without overlap, and with this much RAM. */
static bool map_is_good(const struct boot_range *map, unsigned count, uint64_t ram)
{
    uint64_t end = 0, sum = 0;
    for (unsigned i = 0; i < count; i++) {
        if (map[i].base < end || map[i].len == 0)
            return false;
        end = map[i].base + map[i].len;
        if (map[i].type == 1)
            sum += map[i].len;
    }
    /* 640 KiB - 1 MiB is no RAM, nor is the EBDA. */
    return count <= BOOT_RANGES_MAX && sum == ram - (MIB - LAYOUT_EBDA);
}

static bool map_reserves(const struct boot_range *map, unsigned count, uint64_t base, uint64_t len)
{
    for (unsigned i = 0; i < count; i++)
        if (map[i].type == 2 && map[i].base <= base && base + len <= map[i].base + map[i].len)
            return true;
    return false;
}

static void test_map(void)
{
    static const uint64_t sizes[] = {16 * MIB, 512 * MIB, 2 * GIB, 2 * GIB + MIB, TIB};
    struct boot_range map[BOOT_RANGES_MAX];

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        unsigned n = boot_memory_map(sizes[i], map);
        ok(map_is_good(map, n, sizes[i]), "map is in order and has all RAM");
        ok(map_reserves(map, n, LAYOUT_ECAM_BASE, LAYOUT_ECAM_BUSES * MIB), "ECAM is reserved");
        ok(map_reserves(map, n, LAYOUT_KVM_IDENT, 4 * PAGE_SIZE_BYTES), "KVM's pages are");
        ok(map_reserves(map, n, LAYOUT_BIOS_AREA, LAYOUT_BIOS_AREA_LEN), "the tables' area is");
    }
    unsigned n = boot_memory_map(3 * GIB, map);
    ok(map[n - 1].base == 4 * GIB && map[n - 1].len == GIB, "what exceeds 2 GiB is above 4 GiB");
    boot_memory_map(64 * KIB, map);
    ok(map[0].len == 64 * KIB && map[1].type == 2, "even less than 640 KiB");
}

/* --- choice of the protocol --- */

static int load_bytes(struct fixture *f, enum config_boot protocol, const void *image, size_t len)
{
    char path[32];
    write_file(path, image, len);
    f->params.kernel = path;
    f->params.protocol = protocol;
    int ret = boot_load(&f->params, &f->result, &f->err);
    unlink(path);
    f->params.kernel = NULL;
    return ret;
}

static const struct elf_spec pvh_spec = {.paddr = MIB,
                                         .vaddr = 0xffffffff80100000,
                                         .entry = MIB,
                                         .text_len = 0x800,
                                         .is_64 = true,
                                         .pvh_note = true};

static void put_multiboot(uint8_t *at)
{
    store_le32(at, 0x1badb002);
    store_le32(at + 4, 0);
    store_le32(at + 8, -0x1badb002u);
}

/* A header without tags. */
static void put_multiboot2(uint8_t *at)
{
    store_le32(at, 0xe85250d6);
    store_le32(at + 4, 0);
    store_le32(at + 8, 24);
    store_le32(at + 12, -(0xe85250d6u + 24));
    store_le64(at + 16, 8ULL << 32); /* the end tag */
}

static void test_protocols(void)
{
    struct fixture f;
    struct boot_image image = make_elf(bytes, &pvh_spec);

    fixture_new(&f, 64 * MIB);
    put_multiboot(bytes + 0x1100);
    put_multiboot2(bytes + 0x1200);
    is_int(load_bytes(&f, CONFIG_BOOT_AUTO, bytes, image.len), 0, "all protocols in one image");
    is_str(f.result.protocol, "PVH", "AUTO takes PVH");
    is_int(guest32(&f, 0x40e) & 0xffff, 0x9fc0, "the BIOS data area tells where the EBDA is");
    is_int(guest32(&f, 0x413) & 0xffff, 639, "and the KiB of memory below it");
    is_int(guest32(&f, 0x9fc00) & 0xff, 1, "the EBDA its size");
    is_int(guest32(&f, 4 * 0x13), 0xf000ff53, "BIOS calls are answered");
    ok(guest_has(&f, 0xfff53, "\x55\x89\xe5\x80\x4e\x06\x01\x5d\xcf", 9), "by failing");
    is_int(load_bytes(&f, CONFIG_BOOT_MULTIBOOT2, bytes, image.len), 0, "Multiboot2 on demand");
    is_str(f.result.protocol, "Multiboot2", "it is that");
    is_int(load_bytes(&f, CONFIG_BOOT_MULTIBOOT, bytes, image.len), 0, "Multiboot on demand");
    is_str(f.result.protocol, "Multiboot", "it is that");
    is_int(load_bytes(&f, CONFIG_BOOT_BZIMAGE, bytes, image.len), 0, "Linux on demand");
    is_str(f.result.protocol, "vmlinux, 64-bit entry", "it is that");

    memset(bytes + 0x800, 0, 32); /* no note */
    load_bytes(&f, CONFIG_BOOT_AUTO, bytes, image.len);
    is_str(f.result.protocol, "Multiboot2", "then Multiboot2");
    is_int(load_bytes(&f, CONFIG_BOOT_PVH, bytes, image.len), -ENOEXEC, "PVH, when it is not");
    ok(strstr(f.err.text, "cannot be booted by PVH"), "the error says so");
    memset(bytes + 0x1200, 0, 32);
    load_bytes(&f, CONFIG_BOOT_AUTO, bytes, image.len);
    is_str(f.result.protocol, "Multiboot", "then Multiboot");
    memset(bytes + 0x1100, 0, 32);
    load_bytes(&f, CONFIG_BOOT_AUTO, bytes, image.len);
    is_str(f.result.protocol, "vmlinux, 64-bit entry", "then Linux");
    fixture_free(&f);
}

static void test_gzip(void)
{
    struct fixture f;
    static uint8_t packed[IMAGE_ELF_MAX];
    struct boot_image image = make_elf(bytes, &pvh_spec);
    z_stream z = {.next_in = bytes,
                  .avail_in = (uInt)image.len,
                  .next_out = packed,
                  .avail_out = sizeof(packed)};

    deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    deflate(&z, Z_FINISH);
    fixture_new(&f, 64 * MIB);
    is_int(load_bytes(&f, CONFIG_BOOT_AUTO, packed, z.total_out), 0, "a compressed kernel");
    ok(guest_has(&f, MIB, bytes + 0x1000, 0x800), "is unpacked");
    is_int(load_bytes(&f, CONFIG_BOOT_AUTO, packed, z.total_out - 4), -EINVAL, "if it is whole");
    deflateEnd(&z);
    fixture_free(&f);
}

static void test_errors(void)
{
    static const struct {
        unsigned offset;
        const char *bytes, *says;
    } cases[] = {
        {0,      "plain text",       "unknown format" },
        {0,      "MZ",               "EFI"            },
        {0x38,   "ARM\x64",          "64-bit ARM"     },
        {0,      "\x28\xb5\x2f\xfd", "zstd"           },
        {0,      "QFI\xfb",          "qcow2"          },
        {0,      "070701",           "initrd"         },
        {510,    "\x55\xaa",         "--disk"         },
        {0x8001, "CD001",            "CD image"       },
        {0,      "#!/bin/sh",        "script"         },
        {0,
         "\x7f"
         "ELF\x02\x01\x01",          "another machine"},
    };
    static uint8_t image[40000];
    struct fixture f;

    fixture_new(&f, 64 * MIB);
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        memset(image, 0, sizeof(image));
        memcpy(image + cases[i].offset, cases[i].bytes, strlen(cases[i].bytes));
        is_int(load_bytes(&f, CONFIG_BOOT_AUTO, image, sizeof(image)), -ENOEXEC, "not a kernel");
        ok(strstr(f.err.text, cases[i].says), cases[i].says);
        ok(strncmp(f.err.text, "/tmp/hull-boot-", 15) == 0 && !strchr(f.err.text, '\n'),
           "one line that begins with the path");
    }
    /* Such as Xen's EFI binary, which keeps its Multiboot2 header. */
    memset(image, 0, sizeof(image));
    memcpy(image, "MZ", 2);
    put_multiboot2(image + 0x1000);
    is_int(load_bytes(&f, CONFIG_BOOT_AUTO, image, sizeof(image)), -ENOEXEC, "an EFI binary");
    ok(strstr(f.err.text, "EFI"), "is called so");

    f.params.initrd = "plain";
    memcpy(image, "plain text", 10);
    load_bytes(&f, CONFIG_BOOT_AUTO, image, sizeof(image));
    ok(strncmp(f.err.text, "/tmp/hull-boot-", 15) == 0, "the kernel's path, also then");

    struct boot_image elf = make_elf(bytes, &pvh_spec);
    f.params.initrd = "/nonexistent/initrd";
    is_int(load_bytes(&f, CONFIG_BOOT_AUTO, bytes, elf.len), -ENOENT, "no such initrd");
    ok(strncmp(f.err.text, "/nonexistent/initrd", 19) == 0, "begins with the initrd's path");
    f.params.kernel = "/nonexistent/kernel";
    is_int(boot_load(&f.params, &f.result, &f.err), -ENOENT, "no such kernel");
    is_int(boot_load(&f.params, &f.result, NULL), -ENOENT, "nobody wants to know");
    fixture_free(&f);
}

int main(void)
{
    test_map();
    test_protocols();
    test_gzip();
    test_errors();
    return tap_done();
}

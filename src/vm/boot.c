/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "vm/boot_file.h"
#include "vm/layout.h"

#define E820_RAM      1
#define E820_RESERVED 2

/* Words of the BIOS data area. */
#define BDA_EBDA_SEGMENT 0x0e
#define BDA_BASE_KIB     0x13
#define EBDA_KIB         1

/* --- the memory map --- */

static void add_range(struct boot_range *ranges, unsigned *count, uint64_t base, uint64_t end,
                      uint32_t type)
{
    if (base < end)
        ranges[(*count)++] = (struct boot_range){.base = base, .len = end - base, .type = type};
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

unsigned boot_memory_map(uint64_t ram_bytes, struct boot_range ranges[BOOT_RANGES_MAX])
{
    const uint64_t low = min_u64(ram_bytes, LAYOUT_RAM_LOW_MAX);
    const uint64_t high = ram_bytes - low;
    const uint64_t vga = 0xa0000;
    unsigned n = 0;

    add_range(ranges, &n, 0, min_u64(low, LAYOUT_EBDA), E820_RAM);
    add_range(ranges, &n, LAYOUT_EBDA, vga, E820_RESERVED);
    add_range(ranges, &n, LAYOUT_BIOS_AREA, LAYOUT_BIOS_AREA + LAYOUT_BIOS_AREA_LEN, E820_RESERVED);
    add_range(ranges, &n, LAYOUT_KERNEL_MIN, low, E820_RAM);
    /* Linux uses ECAM only where firmware reserved it. */
    add_range(ranges, &n, LAYOUT_ECAM_BASE, LAYOUT_ECAM_BASE + LAYOUT_ECAM_BUSES * MIB,
              E820_RESERVED);
    add_range(ranges, &n, LAYOUT_KVM_IDENT, LAYOUT_KVM_TSS + 3 * PAGE_SIZE_BYTES, E820_RESERVED);
    add_range(ranges, &n, LAYOUT_RAM_HIGH_BASE, LAYOUT_RAM_HIGH_BASE + high, E820_RAM);
    return n;
}

/* --- what a file looks like, for the error --- */

struct magic {
    uint64_t offset;
    const char *bytes;
    uint8_t len;
    const char *what;
};

/* The most telling first. */
static const struct magic magics[] = {
    {0x38,   "ARM\x64",          4, "a Linux kernel for 64-bit ARM"                       },
    {0x38,   "RSC\x05",          4, "a Linux kernel for RISC-V"                           },
    {0x24,   "\x18\x28\x6f\x01", 4, "a Linux kernel for 32-bit ARM"                       },
    {4,      "zimg",             4, "an EFI zboot image"                                  },
    {0,      "MZ",               2, "an EFI or Windows application, which needs firmware" },
    {0,
     "\xfd"
     "7zXZ",                     5, "xz-compressed data: unpack it"                       },
    {0,      "\x28\xb5\x2f\xfd", 4, "zstd-compressed data: unpack it"                     },
    {0,      "\x02\x21\x4c\x18", 4, "lz4-compressed data: unpack it"                      },
    {0,      "\x04\x22\x4d\x18", 4, "lz4-compressed data: unpack it"                      },
    {0,      "BZh",              3, "bzip2-compressed data: unpack it"                    },
    {0,      "070701",           6, "a cpio archive: an initrd, to be given with --initrd"},
    {0,      "QFI\xfb",          4, "a qcow2 disk image, to be given with --disk"         },
    {0x8001, "CD001",            5, "a CD image, to be given with --disk"                 },
    {0,      "!<arch>",          7, "an archive or Debian package"                        },
    {0,      "\xd0\x0d\xfe\xed", 4, "a device tree"                                       },
    {0,      "\x27\x05\x19\x56", 4, "a U-Boot image"                                      },
    {0,      "#!",               2, "a script"                                            },
    {510,    "\x55\xaa",         2, "a boot sector or disk image, to be given with --disk"},
};

static const char *describe_elf(const struct boot_image *image)
{
    uint16_t type = load_le16(image->bytes + offsetof(Elf32_Ehdr, e_type));
    uint16_t machine = load_le16(image->bytes + offsetof(Elf32_Ehdr, e_machine));

    if (machine == EM_AARCH64)
        return "an ELF file for 64-bit ARM";
    if (machine == EM_RISCV)
        return "an ELF file for RISC-V";
    if (machine != EM_386 && machine != EM_X86_64)
        return "an ELF file for another machine than x86";
    if (type != ET_EXEC && type != ET_DYN)
        return "an ELF file that is no executable";
    return "an ELF file without a PVH entry point or a Multiboot header";
}

static const char *describe(const struct boot_image *image)
{
    if (image->len >= sizeof(Elf32_Ehdr) && memcmp(image->bytes, ELFMAG, SELFMAG) == 0)
        return describe_elf(image);
    for (size_t i = 0; i < ARRAY_LEN(magics); i++) {
        const struct magic *m = &magics[i];
        if (range_fits(m->offset, m->len, image->len) &&
            memcmp(image->bytes + m->offset, m->bytes, m->len) == 0)
            return m->what;
    }
    return "of an unknown format";
}

/* --- loading --- */

struct protocol {
    enum config_boot id;
    const char *name;
    int (*load)(const struct boot_params *params, const struct boot_image *image,
                struct boot_result *result, struct err *err);
};

/* In the order that AUTO tries them. */
static const struct protocol protocols[] = {
    {CONFIG_BOOT_PVH,        "PVH",        boot_load_pvh       },
    {CONFIG_BOOT_MULTIBOOT2, "Multiboot2", boot_load_multiboot2},
    {CONFIG_BOOT_MULTIBOOT,  "Multiboot",  boot_load_multiboot },
    {CONFIG_BOOT_BZIMAGE,    "bzImage",    boot_load_bzimage   },
};

static int load_image(const struct boot_params *params, const struct boot_image *image,
                      struct boot_result *result, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(protocols); i++) {
        const struct protocol *p = &protocols[i];
        if (params->protocol != CONFIG_BOOT_AUTO && params->protocol != p->id)
            continue;
        int ret = p->load(params, image, result, err);
        if (ret != -ENOEXEC)
            return ret;
        if (params->protocol == p->id) {
            err_prefix(err, "cannot be booted by %s", p->name);
            return ret;
        }
    }
    return err_set(err, ENOEXEC, "not a kernel that can be booted: the file is %s",
                   describe(image));
}

static bool begins_with_path(const char *text, const char *path)
{
    size_t len = strlen(path);
    return strncmp(text, path, len) == 0 && text[len] == ':';
}

/* Errors about an initrd or module begin with its path already. */
static bool names_module(const struct boot_params *params, const char *text)
{
    if (params->initrd && begins_with_path(text, params->initrd))
        return true;
    for (unsigned i = 0; i < params->module_count; i++)
        if (begins_with_path(text, params->modules[i].path))
            return true;
    return false;
}

/* A compressed image is unpacked (Multiboot kernels come so); what it was is freed at the end. */
static int load_file(const struct boot_params *params, struct boot_file *file,
                     struct boot_result *result, struct err *err)
{
    struct boot_image image;
    uint8_t *unpacked = NULL;
    int ret = boot_file_map(file, err);

    if (ret < 0)
        return ret;
    image = (struct boot_image){.bytes = file->bytes, .len = file->len};
    if (boot_is_gzip(file->bytes, file->len)) {
        ret = boot_gunzip(file->bytes, file->len, mem_ram_bytes(params->mem), &unpacked, &image.len,
                          err);
        image.bytes = unpacked;
    }
    if (ret == 0)
        ret = load_image(params, &image, result, err);
    if (ret < 0 && err && !names_module(params, err->text))
        err_prefix(err, "%s", params->kernel);
    free(unpacked);
    return ret;
}

/*
 * What is there of a BIOS, for kernels that begin in its world. Xen puts its trampoline where these
 * words, rather than the memory map, say that low memory ends, and calls the BIOS from there: each
 * call fails, by the carry flag.
 */
static int write_bios_data(struct mem *mem, struct err *err)
{
    static const uint8_t handler[] = {
        0x55,                   /* push %bp */
        0x89, 0xe5,             /* mov %sp, %bp */
        0x80, 0x4e, 0x06, 0x01, /* orb $1, 6(%bp): CF of the caller's flags */
        0x5d,                   /* pop %bp */
        0xcf,                   /* iret */
    };
    uint8_t ivt[256 * 4], bda[256] = {0};
    const uint8_t ebda[EBDA_KIB * KIB] = {EBDA_KIB};

    for (unsigned i = 0; i < 256; i++)
        store_le32(ivt + 4 * i, 0xf000u << 16 | (LAYOUT_BIOS_INT & 0xffff));
    store_le16(bda + BDA_EBDA_SEGMENT, LAYOUT_EBDA >> 4);
    store_le16(bda + BDA_BASE_KIB, LAYOUT_EBDA / KIB);
    if (mem_write(mem, GPA(LAYOUT_IVT), ivt, sizeof(ivt)) < 0 ||
        mem_write(mem, GPA(LAYOUT_BDA), bda, sizeof(bda)) < 0 ||
        mem_write(mem, GPA(LAYOUT_EBDA), ebda, sizeof(ebda)) < 0 ||
        mem_write(mem, GPA(LAYOUT_BIOS_INT), handler, sizeof(handler)) < 0)
        return err_set(err, EFAULT, "no RAM at the bottom of memory");
    return 0;
}

int boot_load(const struct boot_params *params, struct boot_result *result, struct err *err)
{
    struct boot_file file;
    int ret = boot_file_open(&file, params->kernel, mem_ram_bytes(params->mem), err);

    if (ret < 0)
        return ret;
    *result = (struct boot_result){0};
    ret = write_bios_data(params->mem, err);
    if (ret == 0)
        ret = load_file(params, &file, result, err);
    boot_file_close(&file);
    return ret;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Multiboot specification 0.6.96. Section numbers are its. */
#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "vm/boot.h"
#include "vm/boot_elf.h"
#include "vm/boot_module.h"
#include "vm/boot_multiboot.h"
#include "vm/boot_space.h"
#include "vm/boot_state.h"
#include "vm/layout.h"

#define HEADER_SEARCH 8192 /* 3.1 */
#define HEADER_MAGIC  0x1badb002
#define LOADER_MAGIC  0x2badb002 /* EAX on entry, 3.2 */

/* 3.1.2. Bits 0-15 are requirements; 0-2 are defined. */
#define HEADER_PAGE_ALIGN  (1u << 0)
#define HEADER_MEMORY_INFO (1u << 1)
#define HEADER_VIDEO_MODE  (1u << 2)
#define HEADER_REQUIRED    0xffffu
#define HEADER_ADDRESSES   (1u << 16)

/* 3.1.1; the video fields behind are of no use to us. */
struct mb_header {
    uint32_t magic, flags, checksum;
    struct boot_multiboot_addresses addresses; /* valid with HEADER_ADDRESSES */
};

/* 3.3 */
#define INFO_MEMORY      (1u << 0)
#define INFO_CMDLINE     (1u << 2)
#define INFO_MODULES     (1u << 3)
#define INFO_MEMORY_MAP  (1u << 6)
#define INFO_LOADER_NAME (1u << 9)

struct mb_info {
    uint32_t flags;
    uint32_t mem_lower, mem_upper;
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
    uint32_t apm_table;
    uint32_t vbe[4];
    uint32_t framebuffer[7];
};

struct mb_module {
    uint32_t start, end, string, reserved;
};

struct mb_mmap_entry {
    uint32_t size; /* of the rest */
    uint64_t base, len;
    uint32_t type;
} __attribute__((packed));

static_assert(sizeof(struct mb_info) == 116 && sizeof(struct mb_mmap_entry) == 24, "3.3");

int boot_multiboot_load_addresses(const struct boot_params *params, struct boot_space *space,
                                  const struct boot_image *image,
                                  const struct boot_multiboot_addresses *a, uint64_t header_offset,
                                  struct err *err)
{
    if (a->header < a->load || a->header - a->load > header_offset ||
        (a->load_end && a->load_end <= a->load))
        return err_set(err, EINVAL, "the load addresses in the Multiboot header make no sense");
    uint64_t offset = header_offset - (a->header - a->load);
    uint64_t len = a->load_end ? a->load_end - a->load : image->len - offset;
    if (!range_fits(offset, len, image->len))
        return err_set(err, EINVAL, "the Multiboot kernel is truncated");
    uint64_t bss_end = a->bss_end ? a->bss_end : a->load + len;
    if (bss_end < a->load + len)
        return err_set(err, EINVAL, "the bss of the Multiboot kernel overlaps its data");

    int ret = boot_space_claim(space, a->load, bss_end - a->load, "kernel", err);
    if (ret < 0)
        return ret;
    ret = mem_write(params->mem, GPA(a->load), image->bytes + offset, len);
    if (ret == 0 && bss_end > a->load + len)
        ret = mem_zero(params->mem, GPA(a->load + len), bss_end - a->load - len);
    return ret < 0 ? err_set(err, ret, "the kernel at 0x%x is not inside RAM", a->load) : 0;
}

int boot_multiboot_modules(const struct boot_params *params, struct boot_space *space,
                           struct boot_modules *modules, struct err *err)
{
    uint64_t min = boot_space_claims_end(space);
    /* An end of 4 GiB would not fit the 32 bits of a module's record. */
    const struct boot_window window = {.min = min > LAYOUT_KERNEL_MIN ? min : LAYOUT_KERNEL_MIN,
                                       .max = 4 * GIB - PAGE_SIZE_BYTES,
                                       .align = PAGE_SIZE_BYTES};
    return boot_modules_load(params, space, &window, modules, err);
}

void boot_multiboot_memory_sizes(const struct boot_params *params, uint32_t *lower_kib,
                                 uint32_t *upper_kib)
{
    struct boot_space space;
    boot_space_init(&space, params);
    uint64_t low_end = boot_space_low_end(&space);

    *lower_kib = LAYOUT_EBDA / KIB;
    *upper_kib = low_end ? (uint32_t)((low_end - LAYOUT_KERNEL_MIN) / KIB) : 0;
}

static int find_header(const struct boot_image *image, struct mb_header *header, uint64_t *offset,
                       struct err *err)
{
    uint64_t end = image->len < HEADER_SEARCH ? image->len : HEADER_SEARCH;
    const uint64_t base_len = offsetof(struct mb_header, addresses);

    for (uint64_t at = 0; at + base_len <= end; at += 4) {
        *header = (struct mb_header){0};
        memcpy(header, image->bytes + at, base_len);
        if (header->magic != HEADER_MAGIC || header->magic + header->flags + header->checksum != 0)
            continue;
        if (header->flags & HEADER_ADDRESSES) {
            if (at + sizeof(*header) > end)
                continue;
            memcpy(header, image->bytes + at, sizeof(*header));
        }
        *offset = at;
        return 0;
    }
    return err_set(err, ENOEXEC, "no Multiboot header in the first 8 KiB");
}

static int fill_modules(struct boot_info *info, struct mb_info *mb,
                        const struct boot_modules *modules, struct err *err)
{
    uint64_t gpa;
    struct mb_module *out = boot_info_alloc(info, modules->count * sizeof(*out), 4, &gpa, err);

    if (!out)
        return -E2BIG;
    for (unsigned i = 0; i < modules->count; i++) {
        const struct boot_module *m = &modules->list[i];
        uint64_t string;
        int ret = boot_info_command(info, m->path, m->args, &string, err);
        if (ret < 0)
            return ret;
        out[i] = (struct mb_module){.start = (uint32_t)m->gpa,
                                    .end = (uint32_t)(m->gpa + m->len),
                                    .string = (uint32_t)string};
    }
    mb->mods_count = modules->count;
    mb->mods_addr = (uint32_t)gpa;
    return 0;
}

static int fill_memory_map(struct boot_info *info, struct mb_info *mb,
                           const struct boot_params *params, struct err *err)
{
    uint64_t gpa;
    struct mb_mmap_entry *out =
        boot_info_alloc(info, params->map_count * sizeof(*out), 4, &gpa, err);

    if (!out)
        return -E2BIG;
    for (unsigned i = 0; i < params->map_count; i++)
        out[i] = (struct mb_mmap_entry){.size = sizeof(*out) - sizeof(out->size),
                                        .base = params->map[i].base,
                                        .len = params->map[i].len,
                                        .type = params->map[i].type};
    mb->mmap_length = params->map_count * (uint32_t)sizeof(*out);
    mb->mmap_addr = (uint32_t)gpa;
    boot_multiboot_memory_sizes(params, &mb->mem_lower, &mb->mem_upper);
    return 0;
}

/* Video mode, drives, APM, symbols: absent, as their bits of flags say. */
static int write_info(const struct boot_params *params, struct boot_info *info,
                      const struct boot_modules *modules, uint64_t *mb_gpa, struct err *err)
{
    struct mb_info *mb = boot_info_alloc(info, sizeof(*mb), 8, mb_gpa, err);
    uint64_t cmdline = 0, name = 0;

    if (!mb)
        return -E2BIG;
    int ret = fill_modules(info, mb, modules, err);
    if (ret == 0)
        ret = fill_memory_map(info, mb, params, err);
    if (ret == 0)
        ret = boot_info_command(info, params->kernel, params->cmdline, &cmdline, err);
    if (ret == 0)
        ret = boot_info_string(info, BOOT_MULTIBOOT_LOADER, &name, err);
    if (ret < 0)
        return ret;
    mb->cmdline = (uint32_t)cmdline;
    mb->boot_loader_name = (uint32_t)name;
    mb->flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    return 0;
}

static int load_kernel(const struct boot_params *params, struct boot_space *space,
                       const struct boot_image *image, const struct mb_header *header,
                       uint64_t header_offset, uint64_t *entry, struct err *err)
{
    struct boot_elf elf;

    if (header->flags & HEADER_ADDRESSES) {
        *entry = header->addresses.entry;
        return boot_multiboot_load_addresses(params, space, image, &header->addresses,
                                             header_offset, err);
    }
    int ret = boot_elf_parse(image, &elf, err);
    if (ret == -ENOEXEC)
        return err_set(err, ENOEXEC,
                       "a Multiboot kernel that is no ELF file and has no load addresses");
    if (ret == 0)
        ret = boot_elf_load(params, space, &elf, image, 0, err);
    if (ret < 0)
        return ret;
    *entry = boot_elf_entry(&elf);
    return 0;
}

int boot_load_multiboot(const struct boot_params *params, const struct boot_image *image,
                        struct boot_result *result, struct err *err)
{
    struct mb_header header;
    struct boot_space space;
    struct boot_modules modules;
    struct boot_info info;
    uint64_t header_offset = 0, entry = 0, mb_gpa = 0;
    int ret = find_header(image, &header, &header_offset, err);

    if (ret < 0)
        return ret;
    /* A video mode is a wish (3.1.2, bit 2: "information about
     * the video mode" is asked for): the information says that there is none. */
    uint32_t unknown = header.flags & HEADER_REQUIRED &
                       ~(HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO | HEADER_VIDEO_MODE);
    if (unknown)
        return err_set(err, ENOTSUP,
                       "the Multiboot kernel requires features we do not know (flags 0x%x)",
                       unknown);
    boot_space_init(&space, params);
    /* Before the kernel, which may want the place of the GDT. */
    ret = boot_state_protected(params->mem, result, 0, err);
    if (ret == 0)
        ret = load_kernel(params, &space, image, &header, header_offset, &entry, err);
    if (ret == 0)
        ret = boot_info_begin(&info, params, &space, err);
    if (ret == 0)
        ret = boot_multiboot_modules(params, &space, &modules, err);
    if (ret == 0)
        ret = write_info(params, &info, &modules, &mb_gpa, err);
    if (ret < 0)
        return ret;
    if (entry > UINT32_MAX)
        return err_set(err, EINVAL, "the entry point 0x%llx is above 4 GiB",
                       (unsigned long long)entry);
    result->regs.rip = entry;
    result->regs.gpr[CPU_RAX] = LOADER_MAGIC;
    result->regs.gpr[CPU_RBX] = mb_gpa;
    result->protocol = "Multiboot";
    return 0;
}

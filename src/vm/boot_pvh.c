/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PVH direct boot: an ELF kernel with a 32-bit entry point in an ELF note of Xen's, given a struct
 * hvm_start_info (xen/include/public/arch-x86/hvm/start_info.h, elfnote.h;
 * docs/misc/pvh.pandoc for the state of the CPU).
 */
#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "vm/boot.h"
#include "vm/boot_elf.h"
#include "vm/boot_module.h"
#include "vm/boot_space.h"
#include "vm/boot_state.h"
#include "vm/layout.h"

#define NOTE_OWNER        "Xen"
#define NOTE_PHYS32_ENTRY 18
#define START_MAGIC       0x336ec578 /* "xEn3" with bit 31 of the E set */
#define START_VERSION     1          /* 1: with the memory map */

/* start_info.h, "struct hvm_start_info". */
struct pvh_start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules_gpa, cmdline_gpa, rsdp_gpa;
    uint64_t memmap_gpa; /* from version 1 on */
    uint32_t memmap_entries, reserved;
};

struct pvh_module {
    uint64_t gpa, len, cmdline_gpa, reserved;
};

struct pvh_memmap_entry {
    uint64_t addr, len;
    uint32_t type, reserved; /* types are those of E820 */
};

static_assert(sizeof(struct pvh_start_info) == 56, "start_info.h");
static_assert(sizeof(struct pvh_memmap_entry) == 24, "start_info.h");

static int add_modules(struct boot_info *info, struct pvh_start_info *start,
                       const struct boot_modules *modules, struct err *err)
{
    if (modules->count == 0)
        return 0;
    struct pvh_module *out =
        boot_info_alloc(info, modules->count * sizeof(*out), 8, &start->modules_gpa, err);
    if (!out)
        return -E2BIG;
    for (unsigned i = 0; i < modules->count; i++) {
        const struct boot_module *m = &modules->list[i];
        out[i].gpa = m->gpa;
        out[i].len = m->len;
        if (m->args[0]) {
            int ret = boot_info_string(info, m->args, &out[i].cmdline_gpa, err);
            if (ret < 0)
                return ret;
        }
    }
    start->module_count = modules->count;
    return 0;
}

static int add_memory_map(struct boot_info *info, struct pvh_start_info *start,
                          const struct boot_params *params, struct err *err)
{
    struct pvh_memmap_entry *out =
        boot_info_alloc(info, params->map_count * sizeof(*out), 8, &start->memmap_gpa, err);

    if (!out)
        return -E2BIG;
    for (unsigned i = 0; i < params->map_count; i++) {
        out[i].addr = params->map[i].base;
        out[i].len = params->map[i].len;
        out[i].type = params->map[i].type;
    }
    start->memmap_entries = params->map_count;
    return 0;
}

static int write_start_info(const struct boot_params *params, struct boot_info *info,
                            const struct boot_modules *modules, uint64_t *start_gpa,
                            struct err *err)
{
    struct pvh_start_info *start = boot_info_alloc(info, sizeof(*start), 8, start_gpa, err);

    if (!start)
        return -E2BIG;
    start->magic = START_MAGIC;
    start->version = START_VERSION;
    start->rsdp_gpa = params->rsdp_gpa;
    int ret = add_modules(info, start, modules, err);
    if (ret == 0)
        ret = add_memory_map(info, start, params, err);
    if (ret == 0)
        ret = boot_info_string(info, params->cmdline ? params->cmdline : "", &start->cmdline_gpa,
                               err);
    return ret;
}

int boot_load_pvh(const struct boot_params *params, const struct boot_image *image,
                  struct boot_result *result, struct err *err)
{
    struct boot_elf elf;
    struct boot_space space;
    struct boot_modules modules;
    struct boot_info info;
    /* High, out of the way of what the kernel takes behind its image. */
    const struct boot_window window = {
        .min = LAYOUT_KERNEL_MIN, .max = 4 * GIB, .align = PAGE_SIZE_BYTES, .top = true};
    uint64_t entry = 0, start_gpa = 0;
    int ret = boot_elf_parse(image, &elf, err);

    if (ret < 0)
        return ret;
    if (!boot_elf_note(&elf, image, NOTE_OWNER, NOTE_PHYS32_ENTRY, &entry))
        return err_set(err, ENOEXEC,
                       "an ELF file without a PVH entry point "
                       "(XEN_ELFNOTE_PHYS32_ENTRY)");
    if (entry > UINT32_MAX || !boot_elf_contains(&elf, entry))
        return err_set(err, EINVAL, "the PVH entry point 0x%llx is outside of the kernel",
                       (unsigned long long)entry);

    boot_space_init(&space, params);
    ret = boot_state_protected(params->mem, result, entry, err);
    if (ret == 0)
        ret = boot_elf_load(params, &space, &elf, image, 0, err);
    if (ret == 0)
        ret = boot_info_begin(&info, params, &space, err);
    if (ret == 0)
        ret = boot_modules_load(params, &space, &window, &modules, err);
    if (ret == 0)
        ret = write_start_info(params, &info, &modules, &start_gpa, err);
    if (ret < 0)
        return ret;
    result->regs.gpr[CPU_RBX] = start_gpa;
    result->protocol = "PVH";
    return 0;
}

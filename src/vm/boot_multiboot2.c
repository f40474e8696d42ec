/* SPDX-License-Identifier: Apache-2.0 */
/* Multiboot2 specification 2.0, for i386 machines with a BIOS. Section numbers are its. */
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

#define HEADER_SEARCH 32768 /* 3.1 */
#define HEADER_ALIGN  8
#define HEADER_MAGIC  0xe85250d6
#define HEADER_LEN    16
#define HEADER_I386   0
#define LOADER_MAGIC  0x36d76289 /* EAX on entry, 3.3 */

/* Header tags, 3.1.3 - 3.1.14. */
#define TAG_END          0
#define TAG_REQUEST      1
#define TAG_ADDRESS      2
#define TAG_ENTRY        3
#define TAG_CONSOLE      4
#define TAG_FRAMEBUFFER  5
#define TAG_ALIGN        6
#define TAG_EFI_BOOT     7
#define TAG_ENTRY_EFI32  8
#define TAG_ENTRY_EFI64  9
#define TAG_RELOCATABLE  10
#define TAG_OPTIONAL     1 /* bit of the tag's flags */
#define TAG_HEADER_LEN   8

#define CONSOLE_REQUIRED 1 /* 3.1.8 */
#define LOAD_FROM_START  0xffffffff
#define PREFER_HIGH      2 /* 3.1.12 */

/* Information tags, 3.6. */
#define INFO_END       0
#define INFO_CMDLINE   1
#define INFO_LOADER    2
#define INFO_MODULE    3
#define INFO_MEMORY    4
#define INFO_MMAP      6
#define INFO_ACPI_OLD  14
#define INFO_ACPI_NEW  15
#define INFO_LOAD_BASE 21

/* The RSDP: revision 0 of it ends behind RsdtAddress (ACPI 6.4, 5.2.5.3). */
#define RSDP_OLD_LEN 20
#define RSDP_NEW_LEN 36

/* What the header asks for. */
struct mb2_header {
    uint64_t offset; /* in the image */
    bool has_addresses, has_entry, relocatable;
    struct boot_multiboot_addresses addresses; /* entry is valid with has_entry */
    uint32_t min, max, align, preference;      /* valid with relocatable */
};

struct mb2_tag {
    uint16_t type, flags;
    uint32_t size;
};

/* --- the header --- */

static bool find_header(const struct boot_image *image, uint64_t *offset, uint32_t *len)
{
    uint64_t end = image->len < HEADER_SEARCH ? image->len : HEADER_SEARCH;

    for (uint64_t at = 0; at + HEADER_LEN <= end; at += HEADER_ALIGN) {
        const uint8_t *p = image->bytes + at;
        if (load_le32(p) != HEADER_MAGIC ||
            load_le32(p) + load_le32(p + 4) + load_le32(p + 8) + load_le32(p + 12) != 0)
            continue;
        if (load_le32(p + 4) != HEADER_I386 || !range_fits(at, load_le32(p + 8), end))
            continue;
        *offset = at;
        *len = load_le32(p + 8);
        return true;
    }
    return false;
}

static const char *unsupplied_name(uint32_t type)
{
    switch (type) {
    case 5:
        return "the BIOS boot device";
    case 7:
        return "VBE information";
    case 8:
        return "a framebuffer";
    case 9:
        return "its ELF symbols";
    case 10:
        return "an APM table";
    case 11:
    case 12:
    case 17:
    case 18:
    case 19:
    case 20:
        return "EFI services, and there is no EFI firmware in a direct kernel boot";
    case 13:
        return "SMBIOS tables by tag";
    case 16:
        return "network information";
    default:
        return NULL;
    }
}

static bool is_supplied(uint32_t type, const struct boot_params *params)
{
    switch (type) {
    case INFO_CMDLINE:
    case INFO_LOADER:
    case INFO_MODULE:
    case INFO_MEMORY:
    case INFO_MMAP:
    case INFO_LOAD_BASE:
        return true;
    case INFO_ACPI_OLD:
    case INFO_ACPI_NEW:
        return params->rsdp_gpa != 0;
    default:
        return false;
    }
}

/* 3.1.5: an array of information tag types. */
static int check_request(const struct boot_params *params, const uint8_t *body, uint32_t len,
                         struct err *err)
{
    for (uint32_t at = 0; at + 4 <= len; at += 4) {
        uint32_t type = load_le32(body + at);
        if (is_supplied(type, params))
            continue;
        const char *name = unsupplied_name(type);
        return name ? err_set(err, ENOTSUP, "the Multiboot2 kernel requires %s", name)
                    : err_set(err, ENOTSUP,
                              "the Multiboot2 kernel requires information of an unknown type %u",
                              type);
    }
    return 0;
}

/* A tag that we cannot serve: of no matter when it is optional. */
static int cannot(const struct mb2_tag *tag, struct err *err, const char *what)
{
    if (tag->flags & TAG_OPTIONAL)
        return 0;
    return err_set(err, ENOTSUP, "the Multiboot2 kernel requires %s", what);
}

static int read_relocatable(struct mb2_header *header, const uint8_t *body, struct err *err)
{
    header->relocatable = true;
    header->min = load_le32(body);
    header->max = load_le32(body + 4);
    header->align = load_le32(body + 8);
    header->preference = load_le32(body + 12);
    if (!is_power_of_two(header->align) || header->min > header->max)
        return err_set(err, EINVAL, "the relocation tag of the Multiboot2 kernel makes no sense");
    return 0;
}

static int read_tag(const struct boot_params *params, const struct mb2_tag *tag,
                    const uint8_t *body, uint32_t len, struct mb2_header *header, struct err *err)
{
    static const uint8_t body_len[] = {
        [TAG_ADDRESS] = 16, [TAG_ENTRY] = 4, [TAG_CONSOLE] = 4, [TAG_RELOCATABLE] = 16};

    if (tag->type < ARRAY_LEN(body_len) && len < body_len[tag->type])
        return err_set(err, EINVAL, "tag %u of the Multiboot2 header is too short", tag->type);
    switch (tag->type) {
    case TAG_REQUEST:
        return tag->flags & TAG_OPTIONAL ? 0 : check_request(params, body, len, err);
    case TAG_ADDRESS:
        header->has_addresses = true;
        header->addresses.header = load_le32(body);
        header->addresses.load = load_le32(body + 4);
        header->addresses.load_end = load_le32(body + 8);
        header->addresses.bss_end = load_le32(body + 12);
        return 0;
    case TAG_ENTRY:
        header->has_entry = true;
        header->addresses.entry = load_le32(body);
        return 0;
    case TAG_CONSOLE:
        return load_le32(body) & CONSOLE_REQUIRED
                   ? cannot(tag, err, "a text console, and there is no VGA")
                   : 0;
    case TAG_FRAMEBUFFER:
        return cannot(tag, err, "a framebuffer, and there is no display");
    case TAG_ALIGN: /* always so */
    case TAG_ENTRY_EFI32:
    case TAG_ENTRY_EFI64: /* entry points for EFI machines only, 3.1.10, 3.1.11 */
        return 0;
    case TAG_EFI_BOOT:
        return cannot(tag, err,
                      "EFI boot services, and there is no EFI firmware in a direct "
                      "kernel boot");
    case TAG_RELOCATABLE:
        return read_relocatable(header, body, err);
    default:
        return cannot(tag, err, "a feature that we do not know");
    }
}

static int read_header(const struct boot_params *params, const struct boot_image *image,
                       struct mb2_header *header, struct err *err)
{
    uint32_t len;

    *header = (struct mb2_header){0};
    if (!find_header(image, &header->offset, &len))
        return err_set(err, ENOEXEC, "no Multiboot2 header in the first 32 KiB");
    const uint8_t *p = image->bytes + header->offset;
    for (uint64_t at = HEADER_LEN; at + TAG_HEADER_LEN <= len;) {
        struct mb2_tag tag;
        memcpy(&tag, p + at, sizeof(tag));
        if (tag.size < TAG_HEADER_LEN || !range_fits(at, tag.size, len))
            break;
        if (tag.type == TAG_END)
            return 0;
        int ret =
            read_tag(params, &tag, p + at + TAG_HEADER_LEN, tag.size - TAG_HEADER_LEN, header, err);
        if (ret < 0)
            return ret;
        at = align_up(at + tag.size, HEADER_ALIGN);
    }
    return err_set(err, EINVAL, "the tags of the Multiboot2 header do not end");
}

/* --- the kernel --- */

/* Where the image goes: as linked if that is free RAM, or else where the kernel allows. base is in
 * and out; the place is only looked for, not claimed. */
static int place_relocatable(const struct boot_params *params, const struct mb2_header *header,
                             uint64_t *base, uint64_t len, struct err *err)
{
    struct boot_space trial;
    struct boot_window window = {.min = header->min,
                                 .max = (uint64_t)header->max + 1,
                                 .align = header->align,
                                 .top = header->preference == PREFER_HIGH};

    boot_space_init(&trial, params);
    if (*base >= header->min && range_fits(*base, len, window.max) &&
        boot_space_claim(&trial, *base, len, "kernel", NULL) == 0)
        return 0;
    /* Below 1 MiB only if the image insists. */
    if (header->max >= LAYOUT_KERNEL_MIN && header->min < LAYOUT_KERNEL_MIN)
        window.min = LAYOUT_KERNEL_MIN;
    return boot_space_place(&trial, len, &window, "kernel", base, err);
}

static int load_kernel(const struct boot_params *params, struct boot_space *space,
                       const struct boot_image *image, const struct mb2_header *header,
                       uint64_t *entry, uint64_t *load_base, struct err *err)
{
    struct boot_elf elf;

    if (header->has_addresses) {
        struct boot_multiboot_addresses a = header->addresses;
        if (!header->has_entry)
            return err_set(err, EINVAL, "the Multiboot2 header has load addresses and no entry");
        if (a.load == LOAD_FROM_START) {
            if (a.header < header->offset)
                return err_set(err, EINVAL,
                               "the load addresses in the Multiboot2 header make no "
                               "sense");
            a.load = a.header - (uint32_t)header->offset;
        }
        *entry = a.entry;
        *load_base = a.load;
        return boot_multiboot_load_addresses(params, space, image, &a, header->offset, err);
    }

    uint64_t base, end, delta = 0;
    int ret = boot_elf_parse(image, &elf, err);
    if (ret == -ENOEXEC)
        return err_set(err, ENOEXEC,
                       "a Multiboot2 kernel that is no ELF file and has no load addresses");
    if (ret < 0)
        return ret;
    if (!boot_elf_extent(&elf, &base, &end))
        return err_set(err, EINVAL, "the ELF file has no segment to load");
    *load_base = base;
    if (header->relocatable) {
        ret = place_relocatable(params, header, load_base, end - base, err);
        delta = *load_base - base;
    }
    if (ret == 0)
        ret = boot_elf_load(params, space, &elf, image, delta, err);
    *entry = (header->has_entry ? header->addresses.entry : boot_elf_entry(&elf)) + delta;
    return ret;
}

/* --- the information --- */

/* A tag with room for body_len bytes; *body, when not NULL, is where they go. */
static int add_tag(struct boot_info *info, uint32_t type, uint64_t body_len, uint8_t **body,
                   struct err *err)
{
    uint8_t *tag = boot_info_alloc(info, TAG_HEADER_LEN + body_len, HEADER_ALIGN, NULL, err);

    if (!tag)
        return -E2BIG;
    store_le32(tag, type);
    store_le32(tag + 4, (uint32_t)(TAG_HEADER_LEN + body_len));
    if (body)
        *body = tag + TAG_HEADER_LEN;
    return 0;
}

/* A tag of fixed fields and then a command line, whose length is known when it is written. */
static int add_command_tag(struct boot_info *info, uint32_t type, const void *fields,
                           uint32_t fields_len, const char *path, const char *args, struct err *err)
{
    uint8_t *body;
    int ret = add_tag(info, type, fields_len, &body, err);

    if (ret < 0)
        return ret;
    if (fields_len)
        memcpy(body, fields, fields_len);
    uint64_t before = info->used, gpa;
    ret = boot_info_command(info, path, args, &gpa, err);
    if (ret < 0)
        return ret;
    store_le32(body - 4, TAG_HEADER_LEN + fields_len + (uint32_t)(info->used - before));
    return 0;
}

static int add_memory(struct boot_info *info, const struct boot_params *params, struct err *err)
{
    const uint32_t entry_len = 24; /* base, length, type, reserved: 3.6.8 */
    uint32_t lower, upper;
    uint8_t *p;
    int ret = add_tag(info, INFO_MEMORY, 8, &p, err);

    if (ret < 0)
        return ret;
    boot_multiboot_memory_sizes(params, &lower, &upper);
    store_le32(p, lower);
    store_le32(p + 4, upper);

    ret = add_tag(info, INFO_MMAP, 8 + (uint64_t)params->map_count * entry_len, &p, err);
    if (ret < 0)
        return ret;
    store_le32(p, entry_len);
    store_le32(p + 4, 0); /* entry_version */
    p += 8;
    for (unsigned i = 0; i < params->map_count; i++, p += entry_len) {
        store_le64(p, params->map[i].base);
        store_le64(p + 8, params->map[i].len);
        store_le32(p + 16, params->map[i].type);
    }
    return 0;
}

/* Copies of the RSDP, 3.6.14 and 3.6.15. */
static int add_acpi(struct boot_info *info, const struct boot_params *params, struct err *err)
{
    uint8_t rsdp[RSDP_NEW_LEN], *p;

    if (params->rsdp_gpa == 0)
        return 0;
    if (mem_read(params->mem, GPA(params->rsdp_gpa), rsdp, sizeof(rsdp)) < 0)
        return err_set(err, EFAULT, "the ACPI root pointer is not in RAM");
    int ret = add_tag(info, INFO_ACPI_OLD, RSDP_OLD_LEN, &p, err);
    if (ret < 0)
        return ret;
    memcpy(p, rsdp, RSDP_OLD_LEN);
    ret = add_tag(info, INFO_ACPI_NEW, RSDP_NEW_LEN, &p, err);
    if (ret < 0)
        return ret;
    memcpy(p, rsdp, RSDP_NEW_LEN);
    return 0;
}

static int add_modules(struct boot_info *info, const struct boot_modules *modules, struct err *err)
{
    for (unsigned i = 0; i < modules->count; i++) {
        const struct boot_module *m = &modules->list[i];
        uint32_t range[2] = {(uint32_t)m->gpa, (uint32_t)(m->gpa + m->len)};
        int ret = add_command_tag(info, INFO_MODULE, range, sizeof(range), m->path, m->args, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int write_info(const struct boot_params *params, struct boot_info *info,
                      const struct boot_modules *modules, const uint64_t *load_base, uint64_t *gpa,
                      struct err *err)
{
    uint8_t *total = boot_info_alloc(info, 8, HEADER_ALIGN, gpa, err), *p;
    uint64_t start = info->used - 8;

    if (!total)
        return -E2BIG;
    int ret = add_command_tag(info, INFO_CMDLINE, NULL, 0, params->kernel, params->cmdline, err);
    if (ret == 0) {
        ret = add_tag(info, INFO_LOADER, sizeof(BOOT_MULTIBOOT_LOADER), &p, err);
        if (ret == 0)
            memcpy(p, BOOT_MULTIBOOT_LOADER, sizeof(BOOT_MULTIBOOT_LOADER));
    }
    if (ret == 0)
        ret = add_modules(info, modules, err);
    if (ret == 0)
        ret = add_memory(info, params, err);
    if (ret == 0)
        ret = add_acpi(info, params, err);
    if (ret == 0 && load_base) {
        ret = add_tag(info, INFO_LOAD_BASE, 4, &p, err);
        if (ret == 0)
            store_le32(p, (uint32_t)*load_base);
    }
    if (ret == 0)
        ret = add_tag(info, INFO_END, 0, NULL, err);
    if (ret == 0)
        store_le32(total, (uint32_t)(info->used - start));
    return ret;
}

int boot_load_multiboot2(const struct boot_params *params, const struct boot_image *image,
                         struct boot_result *result, struct err *err)
{
    struct mb2_header header;
    struct boot_space space;
    struct boot_modules modules;
    struct boot_info info;
    uint64_t entry = 0, load_base = 0, info_gpa = 0;
    int ret = read_header(params, image, &header, err);

    if (ret < 0)
        return ret;
    boot_space_init(&space, params);
    /* Before the kernel, which may want the place of the GDT. */
    ret = boot_state_protected(params->mem, result, 0, err);
    if (ret == 0)
        ret = load_kernel(params, &space, image, &header, &entry, &load_base, err);
    if (ret == 0)
        ret = boot_info_begin(&info, params, &space, err);
    if (ret == 0)
        ret = boot_multiboot_modules(params, &space, &modules, err);
    if (ret == 0)
        ret = write_info(params, &info, &modules, header.relocatable ? &load_base : NULL, &info_gpa,
                         err);
    if (ret < 0)
        return ret;
    if (entry > UINT32_MAX)
        return err_set(err, EINVAL, "the entry point 0x%llx is above 4 GiB",
                       (unsigned long long)entry);
    result->regs.rip = entry;
    result->regs.gpr[CPU_RAX] = LOADER_MAGIC;
    result->regs.gpr[CPU_RBX] = info_gpa;
    result->protocol = "Multiboot2";
    return 0;
}

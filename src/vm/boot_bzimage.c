/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), entered behind the real-mode code:
 * the VMM fills the zero page (struct boot_params) that the real-mode code would. Also an
 * uncompressed 64-bit Linux ELF (vmlinux) without a PVH note, which takes the same zero page at its
 * own entry point.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "base/err.h"
#include "vm/boot.h"
#include "vm/boot_elf.h"
#include "vm/boot_module.h"
#include "vm/boot_space.h"
#include "vm/boot_state.h"
#include "vm/layout.h"

/* The zero page is the kernel's struct boot_params; that name is ours here. */
#define boot_params linux_zero_page
#include <asm/bootparam.h>
#undef boot_params

#define SETUP_HEADER      0x1f1      /* struct setup_header in the image and in the zero page */
#define SETUP_HEADER_END  0x290      /* the most that the zero page has room for */
#define HEADER_MAGIC      0x53726448 /* "HdrS" */
#define BOOT_FLAG         0xaa55
#define SECTOR            512
#define ENTRY_64_OFFSET   0x200 /* of the 64-bit entry point from where the kernel is loaded */
#define LOADER_UNKNOWN    0xff  /* type_of_loader: no number is assigned to us */
#define VID_MODE_NORMAL   0xffff
#define INITRD_MAX_OLD    0x38000000ULL         /* protocol before 2.03 */
#define CMDLINE_MAX_OLD   255                   /* before 2.06 */
#define LINUX_KERNEL_BASE 0xffffffff80000000ULL /* __START_KERNEL_map, x86/x86_64/mm.rst */
#define LINUX_CMDLINE_MAX 2047                  /* COMMAND_LINE_SIZE - 1 of x86 */

static_assert(sizeof(struct linux_zero_page) == PAGE_SIZE_BYTES, "the zero page is a page");

/* What the kernel's header says, checked, with the defaults of its version filled in. */
struct linux_image {
    struct setup_header header;
    uint64_t header_end;    /* offset in the image; 0: none, a vmlinux */
    const uint8_t *payload; /* the protected-mode kernel */
    uint64_t payload_len;
    uint64_t load_addr, run_len; /* where it wants to be; how much it takes there while it starts */
    uint64_t align;              /* where else it may be: 0 nowhere */
    uint64_t cmdline_max;
    uint64_t initrd_max; /* first address behind what an initrd may take */
    bool entry_64, initrd_high;
};

static bool has_version(const struct linux_image *linux_image, unsigned major, unsigned minor)
{
    return linux_image->header.version >= (major << 8 | minor);
}

/* Copy the header out of the image: as long as it says (boot.rst, "64-bit Boot Protocol"), and at
 * most as long as we know. The rest stays zero. */
static int read_header(const struct boot_image *image, struct linux_image *li, struct err *err)
{
    const uint64_t fixed_end = SETUP_HEADER + offsetof(struct setup_header, realmode_swtch);

    *li = (struct linux_image){0};
    if (image->len < fixed_end ||
        load_le16(image->bytes + SETUP_HEADER + offsetof(struct setup_header, boot_flag)) !=
            BOOT_FLAG ||
        load_le32(image->bytes + SETUP_HEADER + offsetof(struct setup_header, header)) !=
            HEADER_MAGIC)
        return err_set(err, ENOEXEC, "not a Linux bzImage");
    /* The jump at 0x200 goes to just behind the header: its displacement counts from 0x202. */
    uint64_t end = 0x202 + (uint64_t)image->bytes[0x201];
    if (end > SETUP_HEADER_END)
        end = SETUP_HEADER_END;
    if (end < fixed_end || end > image->len)
        return err_set(err, EINVAL, "the bzImage is truncated in its setup header");
    uint64_t len = end - SETUP_HEADER;
    li->header_end = end;
    memcpy(&li->header, image->bytes + SETUP_HEADER,
           len < sizeof(li->header) ? len : sizeof(li->header));
    return 0;
}

static int find_payload(const struct boot_image *image, struct linux_image *li, struct err *err)
{
    const struct setup_header *h = &li->header;
    uint64_t setup = (uint64_t)((h->setup_sects ? h->setup_sects : 4) + 1) * SECTOR;

    if (setup >= image->len)
        return err_set(err, EINVAL, "the bzImage is truncated in its setup code");
    li->payload = image->bytes + setup;
    li->payload_len = image->len - setup;
    /* Before 2.04 only the low 16 bits of syssize count, which says nothing of a bzImage. */
    uint64_t want = has_version(li, 2, 4) ? (uint64_t)h->syssize * 16 : 0;
    /* syssize is rounded up to 16 bytes, the file need not be. */
    if (want >= li->payload_len + 16)
        return err_set(err, EINVAL, "the bzImage is truncated: %llu of %llu bytes of kernel",
                       (unsigned long long)li->payload_len, (unsigned long long)want);
    /* What follows (a signature) is not the kernel's. */
    if (want && want < li->payload_len)
        li->payload_len = want;
    return 0;
}

static int parse(const struct boot_image *image, struct linux_image *li, struct err *err)
{
    const struct setup_header *h = &li->header;
    int ret = read_header(image, li, err);

    if (ret < 0)
        return ret;
    if (!has_version(li, 2, 2))
        return err_set(err, ENOTSUP, "boot protocol %u.%02u is too old, 2.02 (Linux 2.4) is needed",
                       h->version >> 8, h->version & 0xff);
    if (!(h->loadflags & LOADED_HIGH))
        return err_set(err, ENOTSUP, "a zImage (loaded low), only a bzImage can be booted");
    ret = find_payload(image, li, err);
    if (ret < 0)
        return ret;

    li->load_addr = LAYOUT_KERNEL_MIN;
    li->run_len = li->payload_len;
    li->initrd_max = has_version(li, 2, 3) ? (uint64_t)h->initrd_addr_max + 1 : INITRD_MAX_OLD;
    li->cmdline_max = has_version(li, 2, 6) ? h->cmdline_size : CMDLINE_MAX_OLD;
    if (has_version(li, 2, 10)) {
        li->load_addr = h->pref_address;
        if (h->init_size > li->run_len)
            li->run_len = h->init_size;
    }
    if (has_version(li, 2, 5) && h->relocatable_kernel) {
        if (!is_power_of_two(h->kernel_alignment))
            return err_set(err, EINVAL, "kernel_alignment 0x%x of the bzImage is no power of two",
                           h->kernel_alignment);
        li->align = h->kernel_alignment;
    }
    if (has_version(li, 2, 12)) {
        li->entry_64 = h->xloadflags & XLF_KERNEL_64;
        li->initrd_high = li->entry_64 && (h->xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G);
    }
    if (li->entry_64 && li->payload_len <= ENTRY_64_OFFSET)
        return err_set(err, EINVAL, "the bzImage has no code at its 64-bit entry point");
    return 0;
}

/*
 * The preferred address, or else the next place above it: a kernel that is loaded lower than it
 * was built for moves itself there all the same.
 */
static int place_kernel(struct boot_space *space, const struct linux_image *li, uint64_t *base,
                        struct err *err)
{
    const struct boot_window window = {
        .min = li->load_addr, .max = 4 * GIB, .align = li->align ? li->align : 1};

    if (li->load_addr < LAYOUT_KERNEL_MIN || li->load_addr >= 4 * GIB)
        return err_set(err, EINVAL, "the bzImage wants to be loaded at 0x%llx",
                       (unsigned long long)li->load_addr);
    if (li->align && boot_space_place(space, li->run_len, &window, "kernel", base, NULL) == 0)
        return 0;
    *base = li->load_addr;
    return boot_space_claim(space, *base, li->run_len, "kernel", err);
}

static int write_cmdline(const struct boot_params *params, uint64_t max, struct err *err)
{
    const char *cmdline = params->cmdline ? params->cmdline : "";
    size_t len = strlen(cmdline);

    if (max > LAYOUT_EBDA - LAYOUT_BOOT_CMDLINE - 1)
        max = LAYOUT_EBDA - LAYOUT_BOOT_CMDLINE - 1;
    if (len > max)
        return err_set(err, E2BIG,
                       "the kernel command line has %zu characters, this kernel takes %llu", len,
                       (unsigned long long)max);
    int ret = mem_write(params->mem, GPA(LAYOUT_BOOT_CMDLINE), cmdline, len + 1);
    return ret < 0 ? err_set(err, ret, "no RAM at the bottom of memory") : 0;
}

/* As high as the kernel's limit allows; above 4 GiB only if there is no room and it can do that. */
static int load_initrd(const struct boot_params *params, struct boot_space *space,
                       const struct linux_image *li, struct boot_module *initrd, struct err *err)
{
    struct boot_window window = {.min = LAYOUT_KERNEL_MIN,
                                 .max = li->initrd_max < 4 * GIB ? li->initrd_max : 4 * GIB,
                                 .align = PAGE_SIZE_BYTES,
                                 .top = true};
    int ret = boot_module_load(params, space, params->initrd, &window, "initrd", initrd, err);

    if (ret == -ENOSPC && li->initrd_high) {
        window.max = UINT64_MAX;
        ret = boot_module_load(params, space, params->initrd, &window, "initrd", initrd, err);
    }
    return ret;
}

static void fill_e820(struct linux_zero_page *zero, const struct boot_params *params)
{
    static_assert(BOOT_RANGES_MAX <= E820_MAX_ENTRIES_ZEROPAGE, "the map fits the zero page");
    unsigned count = params->map_count < BOOT_RANGES_MAX ? params->map_count : BOOT_RANGES_MAX;

    for (unsigned i = 0; i < count; i++) {
        zero->e820_table[i].addr = params->map[i].base;
        zero->e820_table[i].size = params->map[i].len;
        zero->e820_table[i].type = params->map[i].type;
    }
    zero->e820_entries = (uint8_t)count;
}

/* Documentation/arch/x86/zero-page.rst. */
static int write_zero_page(const struct boot_params *params, const struct boot_image *image,
                           const struct linux_image *li, uint64_t load_addr,
                           const struct boot_module *initrd, struct err *err)
{
    struct linux_zero_page *zero =
        mem_ptr(params->mem, GPA(LAYOUT_BOOT_PARAMS), sizeof(*zero), MEM_WRITE);

    if (!zero)
        return err_set(err, EFAULT, "no RAM at the bottom of memory");
    memset(zero, 0, sizeof(*zero));
    if (li->header_end)
        memcpy((uint8_t *)zero + SETUP_HEADER, image->bytes + SETUP_HEADER,
               li->header_end - SETUP_HEADER);
    else
        zero->hdr = li->header;
    zero->hdr.vid_mode = VID_MODE_NORMAL;
    zero->hdr.type_of_loader = LOADER_UNKNOWN;
    zero->hdr.code32_start = (uint32_t)load_addr;
    zero->hdr.cmd_line_ptr = LAYOUT_BOOT_CMDLINE;
    zero->hdr.setup_data = 0;
    zero->hdr.ramdisk_image = (uint32_t)initrd->gpa;
    zero->hdr.ramdisk_size = (uint32_t)initrd->len;
    zero->ext_ramdisk_image = (uint32_t)(initrd->gpa >> 32);
    zero->ext_ramdisk_size = (uint32_t)(initrd->len >> 32);
    zero->acpi_rsdp_addr = params->rsdp_gpa;
    fill_e820(zero, params);
    return 0;
}

/* The kernel is placed and claimed; all that goes with it, and the CPU. */
static int finish(const struct boot_params *params, const struct boot_image *image,
                  const struct linux_image *li, struct boot_space *space, uint64_t load_addr,
                  uint64_t entry, struct boot_result *result, struct err *err)
{
    struct boot_module initrd = {0};
    int ret = write_cmdline(params, li->cmdline_max, err);

    if (ret == 0 && params->initrd)
        ret = load_initrd(params, space, li, &initrd, err);
    if (ret == 0)
        ret = write_zero_page(params, image, li, load_addr, &initrd, err);
    if (ret == 0)
        ret = li->entry_64 ? boot_state_long(params->mem, result, entry, err)
                           : boot_state_protected(params->mem, result, entry, err);
    if (ret == 0)
        result->regs.gpr[CPU_RSI] = LAYOUT_BOOT_PARAMS; /* EBP, EDI, EBX are zero */
    return ret;
}

/*
 * Linux as an ELF file: linked to the top 2 GiB, entered at its physical address, which is where
 * the unpacked bzImage continues too.
 */
static int load_vmlinux(const struct boot_params *params, const struct boot_image *image,
                        struct boot_result *result, struct err *err)
{
    struct boot_elf elf;
    struct boot_space space;
    struct linux_image li = {
  /* A header such as a bootloader would have copied from the bzImage. */
        .header = {.boot_flag = BOOT_FLAG,
                   .header = HEADER_MAGIC,
                   .version = 0x020c,
                   .loadflags = LOADED_HIGH,
                   .kernel_alignment = 2 * MIB},
        .cmdline_max = LINUX_CMDLINE_MAX,
        .initrd_max = 4 * GIB,
        .entry_64 = true,
    };
    bool linux_elf = false;
    int ret = boot_elf_parse(image, &elf, err);

    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < elf.count; i++)
        linux_elf |= elf.segments[i].vaddr >= LINUX_KERNEL_BASE;
    if (!elf.is_64 || !linux_elf)
        return err_set(err, ENOEXEC, "not a Linux bzImage or vmlinux");
    uint64_t entry = boot_elf_entry(&elf);
    if (!boot_elf_contains(&elf, entry) || entry >= 4 * GIB)
        return err_set(err, EINVAL, "the vmlinux's entry point 0x%llx is outside of it",
                       (unsigned long long)entry);
    boot_space_init(&space, params);
    ret = boot_elf_load(params, &space, &elf, image, 0, err);
    if (ret == 0)
        ret = finish(params, image, &li, &space, entry, entry, result, err);
    result->protocol = "vmlinux, 64-bit entry";
    return ret;
}

int boot_load_bzimage(const struct boot_params *params, const struct boot_image *image,
                      struct boot_result *result, struct err *err)
{
    struct linux_image li;
    struct boot_space space;
    uint64_t base;
    int ret = parse(image, &li, err);

    if (ret == -ENOEXEC)
        return load_vmlinux(params, image, result, err);
    if (ret < 0)
        return ret;
    if (params->module_count)
        return err_set(err, EINVAL,
                       "modules go with Multiboot and PVH kernels, not with a bzImage");
    boot_space_init(&space, params);
    ret = place_kernel(&space, &li, &base, err);
    if (ret < 0)
        return ret;
    ret = mem_write(params->mem, GPA(base), li.payload, li.payload_len);
    if (ret < 0)
        return err_set(err, ret, "no RAM at 0x%llx", (unsigned long long)base);
    result->protocol = li.entry_64 ? "bzImage, 64-bit entry" : "bzImage, 32-bit entry";
    return finish(params, image, &li, &space, base, base + (li.entry_64 ? ENTRY_64_OFFSET : 0),
                  result, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct kernel boot, without firmware: load the image and what goes with it into guest RAM, and
 * say in what state vCPU 0 starts. Four protocols:
 *
 *   bzImage     Linux x86 boot protocol 2.02+ (Documentation/arch/x86/boot.rst): 64-bit entry where
 *               XLF_KERNEL_64 offers one, else the 32-bit entry
 *               (also an uncompressed vmlinux without a PVH note, at its 64-bit entry)
 *   PVH         uncompressed ELF with XEN_ELFNOTE_PHYS32_ENTRY
 *               (xen/include/public/arch-x86/hvm/start_info.h)
 *   Multiboot   specification 0.6.96
 *   Multiboot2  specification 2.0
 *
 * Images are hostile input: every offset and size in them is checked. A kernel image compressed
 * with gzip is unpacked on the way; initrd and modules go to the guest as they are (Linux unpacks
 * its initrd itself). With PVH and Multiboot an initrd is the first module; a bzImage takes no
 * modules.
 *
 * Threads: the builder's alone, before the vCPUs run (at power-on and again after a reset).
 */
#ifndef HULL_VM_BOOT_H
#define HULL_VM_BOOT_H

#include "engine/cpu_state.h"
#include "mem/mem.h"
#include "vm/config.h"

/* One range of the guest's memory map (E820 types: 1 RAM, 2 reserved, 3 ACPI). */
struct boot_range {
    uint64_t base, len;
    uint32_t type;
};

#define BOOT_RANGES_MAX 16

struct boot_params {
    struct mem *mem;
    /* AUTO: by what the image offers: PVH, Multiboot2, Multiboot, bzImage */
    enum config_boot protocol;
    const char *kernel, *initrd, *cmdline;
    const struct config_module *modules;
    unsigned module_count;
    uint64_t rsdp_gpa; /* ACPI root pointer, already in RAM */
    const struct boot_range *map;
    unsigned map_count;
};

struct boot_result {
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    const char *protocol; /* for the log: "PVH", "bzImage, 64-bit entry" */
};

/*
 * 0, or -errno with one line in err: no such file, not a kernel image (says what it looks like),
 * truncated, does not fit into RAM (says how much memory it takes).
 */
int boot_load(const struct boot_params *params, struct boot_result *result, struct err *err);

/* One protocol each, given the image's bytes (fuzzed). image is the unpacked file. -ENOEXEC: the
 * image does not speak this protocol. */
struct boot_image {
    const uint8_t *bytes;
    uint64_t len;
};

int boot_load_bzimage(const struct boot_params *params, const struct boot_image *image,
                      struct boot_result *result, struct err *err);
int boot_load_pvh(const struct boot_params *params, const struct boot_image *image,
                  struct boot_result *result, struct err *err);
int boot_load_multiboot(const struct boot_params *params, const struct boot_image *image,
                        struct boot_result *result, struct err *err);
int boot_load_multiboot2(const struct boot_params *params, const struct boot_image *image,
                         struct boot_result *result, struct err *err);

/* The guest's memory map for this much RAM. Returns the number of ranges. */
unsigned boot_memory_map(uint64_t ram_bytes, struct boot_range ranges[BOOT_RANGES_MAX]);

#endif

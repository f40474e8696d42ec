/* SPDX-License-Identifier: Apache-2.0 */
/* What Multiboot and Multiboot2 have in common. */
#ifndef HULL_VM_BOOT_MULTIBOOT_H
#define HULL_VM_BOOT_MULTIBOOT_H

#include "vm/boot_module.h"

/* Not "GRUB": Xen for one would then expect command lines without the file's name. */
#define BOOT_MULTIBOOT_LOADER "Hull"

/* Where to load an image of any format: the address fields of the Multiboot header (0.6.96, 3.1.3),
 * the address and entry address tags of Multiboot2 (2.0, 3.1.5, 3.1.6). */
struct boot_multiboot_addresses {
    uint32_t header; /* of the Multiboot header itself */
    uint32_t load;
    uint32_t load_end; /* 0: to the end of the file */
    uint32_t bss_end;  /* 0: no bss */
    uint32_t entry;
};

/* Load by these addresses an image whose Multiboot header is at header_offset. */
int boot_multiboot_load_addresses(const struct boot_params *params, struct boot_space *space,
                                  const struct boot_image *image,
                                  const struct boot_multiboot_addresses *addresses,
                                  uint64_t header_offset, struct err *err);

/* Modules at page boundaries behind the kernel, as low as they can be: many kernels map only the
 * first megabytes at their start. */
int boot_multiboot_modules(const struct boot_params *params, struct boot_space *space,
                           struct boot_modules *modules, struct err *err);

/* KiB from 0, and from 1 MiB to the first hole. */
void boot_multiboot_memory_sizes(const struct boot_params *params, uint32_t *lower_kib,
                                 uint32_t *upper_kib);

#endif

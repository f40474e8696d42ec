/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state in which vCPU 0 enters a kernel: flat 32-bit protected mode without paging, or 64-bit
 * mode over identity-mapped tables. General registers are the protocol's to fill.
 */
#ifndef HULL_VM_BOOT_STATE_H
#define HULL_VM_BOOT_STATE_H

#include "vm/boot.h"

/* Both write a GDT with code at 0x10 and data at 0x18 (Linux __BOOT_CS, __BOOT_DS) to
 * LAYOUT_BOOT_GDT. Call before the kernel is loaded: a kernel that wants this place gets it. */
int boot_state_protected(struct mem *mem, struct boot_result *result, uint64_t entry,
                         struct err *err);

/* Also writes page tables for the first 4 GiB to LAYOUT_BOOT_PAGETABLES. */
int boot_state_long(struct mem *mem, struct boot_result *result, uint64_t entry, struct err *err);

#endif

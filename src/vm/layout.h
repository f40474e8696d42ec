/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's address map, in one place: a q35-class PC. The limits of RAM and the default places
 * of ECAM follow what SeaBIOS and OVMF expect of a q35.
 */
#ifndef HULL_VM_LAYOUT_H
#define HULL_VM_LAYOUT_H

#include "base/units.h"

/* RAM: [0, 2 GiB) and, beyond that, from 4 GiB on. */
#define LAYOUT_RAM_LOW_MAX   0x80000000ULL
#define LAYOUT_RAM_HIGH_BASE 0x100000000ULL

/*
 * PCI memory below 4 GiB. ECAM first (room for 256 buses of 1 MiB), then 32-bit BARs. ACPI tells of
 * as many buses as the machine will ever have: Linux probes each for devices, with 17,000 port
 * accesses for 256 of them.
 */
#define LAYOUT_ECAM_BASE     0xb0000000ULL
#define LAYOUT_ECAM_BUSES    16u
#define LAYOUT_PCI_MEM32     0xc0000000ULL
#define LAYOUT_PCI_MEM32_END 0xfc000000ULL

#define LAYOUT_IOAPIC        0xfec00000ULL
#define LAYOUT_HPET          0xfed00000ULL
#define LAYOUT_LAPIC         0xfee00000ULL
/* APIC ids 0 to 254: 0xff is the broadcast address. More processors need x2APIC. */
#define LAYOUT_XAPIC_CPUS_MAX 255
#define LAYOUT_KVM_TSS        0xfeffd000ULL /* 3 pages that Intel hosts want (KVM_SET_TSS_ADDR) */
#define LAYOUT_KVM_IDENT      0xfeffc000ULL /* 1 page (KVM_SET_IDENTITY_MAP_ADDR) */

/* PCI I/O: above the fixed ports of the chipset. */
#define LAYOUT_PCI_IO     0x6000u
#define LAYOUT_PCI_IO_END 0x10000u

/* 64-bit BARs start at the first multiple of this above RAM. */
#define LAYOUT_PCI_MEM64_ALIGN (32 * GIB)
#define LAYOUT_PCI_MEM64_SIZE  (32 * GIB)

/* Fixed ports. */
#define LAYOUT_PORT_PM_BASE  0x600u /* ACPI: PM1a event, +4 control, +8 timer, +0x20 GPE0 */
#define LAYOUT_PORT_PM_LEN   0x80u
#define LAYOUT_PORT_PVPANIC  0x505u
#define LAYOUT_PORT_EXIT     0xf4u
#define LAYOUT_PORT_POST     0x80u
#define LAYOUT_PORT_DEBUGCON 0x402u
#define LAYOUT_PORT_RESET    0xcf9u

#define LAYOUT_GSI_SCI       9u

/* Direct kernel boot: what the VMM writes below 1 MiB. */
#define LAYOUT_IVT             0ULL     /* real mode's interrupt vectors, 1 KiB */
#define LAYOUT_BDA             0x400ULL /* BIOS data area, 256 bytes */
#define LAYOUT_BOOT_GDT        0x500ULL
#define LAYOUT_BOOT_PARAMS     0x7000ULL /* bzImage zero page */
#define LAYOUT_BOOT_STACK      0x8ff0ULL
#define LAYOUT_BOOT_PAGETABLES 0x9000ULL  /* PML4, PDPT, 4 page directories */
#define LAYOUT_BOOT_INFO       0x10000ULL /* PVH start_info, Multiboot information; 48 KiB */
#define LAYOUT_BOOT_CMDLINE    0x20000ULL /* 64 KiB */
#define LAYOUT_EBDA            0x9fc00ULL
#define LAYOUT_BIOS_AREA       0xe0000ULL /* ACPI and SMBIOS tables: 128 KiB */
#define LAYOUT_BIOS_AREA_LEN   0x20000ULL
#define LAYOUT_BIOS_INT        0xfff53ULL /* all BIOS calls; F000:FF53, a PC's dummy handler */
#define LAYOUT_KERNEL_MIN      0x100000ULL

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI 6.4 tables of the board (RSDP, XSDT, FADT, FACS, MADT, MCFG, HPET, DSDT) and the SMBIOS 3.3
 * tables, written into the BIOS area of guest RAM for direct kernel boot.
 */
#ifndef HULL_VM_ACPI_H
#define HULL_VM_ACPI_H

#include "mem/mem.h"

struct acpi_params {
    unsigned cpus;
    uint64_t pci_mem64_base, pci_mem64_len; /* 0 len: no 64-bit window */
    unsigned phys_bits;
    unsigned serial_count; /* COM1.. present */
    bool hpet;
};

/* Writes the tables at area (len bytes, page aligned); rsdp_gpa tells where the RSDP stands.
 * -ENOSPC: they do not fit. */
int acpi_build(struct mem *mem, const struct acpi_params *params, gpa_t area, uint64_t len,
               uint64_t *rsdp_gpa, struct err *err);

struct smbios_params {
    const char *product_name;
    const char *vm_name;
    const char *version; /* of Hull */
    uint8_t uuid[16];
    unsigned cpus;
    uint64_t ram_bytes;
};

/* Writes the 64-bit entry point and the structures at area. */
int smbios_build(struct mem *mem, const struct smbios_params *params, gpa_t area, uint64_t len,
                 struct err *err);

#endif

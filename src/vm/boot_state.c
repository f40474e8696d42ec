/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_state.h"

#include <errno.h>

#include "base/err.h"
#include "vm/layout.h"

#define CS_SELECTOR 0x10
#define DS_SELECTOR 0x18

/* SDM vol. 3, 3.4.5: base 0, limit 0xfffff pages, the attributes of CPU_SEG_*. */
#define DESCRIPTOR(attr) (0x000f00000000ffffULL | ((uint64_t)((attr)&0xf0ff) << 40))

/* SDM vol. 3, 4.5: present, writable, accessed; a leaf of 2 MiB is dirty too. */
#define PTE_TABLE 0x23ULL
#define PTE_LARGE 0xe3ULL
#define PTE_COUNT 512
#define PD_COUNT  4

/* IA32_APIC_BASE: enabled, bootstrap processor (SDM vol. 3, 10.4.4). */
#define APIC_BASE_BSP (LAYOUT_LAPIC | 0x900)

static int write_gdt(struct mem *mem, uint16_t code_attr, struct err *err)
{
    uint64_t gdt[4] = {
        [CS_SELECTOR / 8] = DESCRIPTOR(code_attr),
        [DS_SELECTOR / 8] = DESCRIPTOR(CPU_SEG_DATA),
    };
    int ret = mem_write(mem, GPA(LAYOUT_BOOT_GDT), gdt, sizeof(gdt));
    return ret < 0 ? err_set(err, ret, "no RAM at the bottom of memory") : 0;
}

static void set_segments(struct boot_result *result, uint64_t entry, uint16_t code_attr)
{
    const struct cpu_segment data = {
        .limit = 0xffffffff, .selector = DS_SELECTOR, .attr = CPU_SEG_DATA};

    result->regs = (struct cpu_regs){.rip = entry, .rflags = 2}; /* bit 1 is always set */
    result->sregs = (struct cpu_sregs){
        .cs = {.limit = 0xffffffff, .selector = CS_SELECTOR, .attr = code_attr},
        .ds = data,
        .es = data,
        .fs = data,
        .gs = data,
        .ss = data,
 /* PVH wants a 32-bit TSS of this limit; the other protocols leave it open. */
        .tr = {.limit = 0x67,                   .attr = CPU_SEG_TSS                             },
        .gdt = {.base = LAYOUT_BOOT_GDT,                   .limit = 4 * 8 - 1},
        .cr0 = CPU_CR0_PE | CPU_CR0_ET,
        .apic_base = APIC_BASE_BSP,
    };
}

int boot_state_protected(struct mem *mem, struct boot_result *result, uint64_t entry,
                         struct err *err)
{
    set_segments(result, entry, CPU_SEG_CODE32);
    return write_gdt(mem, CPU_SEG_CODE32, err);
}

int boot_state_long(struct mem *mem, struct boot_result *result, uint64_t entry, struct err *err)
{
    const uint64_t pml4 = LAYOUT_BOOT_PAGETABLES;
    const uint64_t pdpt = pml4 + PAGE_SIZE_BYTES;
    const uint64_t pd = pdpt + PAGE_SIZE_BYTES;
    uint64_t *tables =
        mem_ptr(mem, GPA(LAYOUT_BOOT_PAGETABLES), (2 + PD_COUNT) * PAGE_SIZE_BYTES, MEM_WRITE);

    if (!tables)
        return err_set(err, EFAULT, "no RAM at the bottom of memory");
    memset(tables, 0, 2 * PAGE_SIZE_BYTES);
    tables[0] = pdpt | PTE_TABLE;
    for (unsigned i = 0; i < PD_COUNT; i++)
        tables[PTE_COUNT + i] = (pd + i * PAGE_SIZE_BYTES) | PTE_TABLE;
    for (uint64_t i = 0; i < PD_COUNT * PTE_COUNT; i++)
        tables[2 * PTE_COUNT + i] = (i * 2 * MIB) | PTE_LARGE;

    set_segments(result, entry, CPU_SEG_CODE64);
    result->regs.gpr[CPU_RSP] = LAYOUT_BOOT_STACK;
    result->sregs.cr0 |= CPU_CR0_PG;
    result->sregs.cr3 = pml4;
    result->sregs.cr4 = CPU_CR4_PAE;
    result->sregs.efer = CPU_EFER_LME | CPU_EFER_LMA;
    return write_gdt(mem, CPU_SEG_CODE64, err);
}

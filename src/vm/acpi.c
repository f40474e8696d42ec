/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/acpi.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "base/err.h"
#include "dev/hpet.h"
#include "dev/pm.h"
#include "dev/pvpanic.h"
#include "vm/aml.h"
#include "vm/layout.h"

#define TABLE_HEADER_LEN 36 /* ACPI 6.4, 5.2.6 */
#define OEM_ID           "HULL  "
#define OEM_TABLE_ID     "HULLVM  "
#define CREATOR_ID       "HULL"
#define REVISION         1
#define CPUS_MAX         4096u /* four characters name a processor device */

/* The area that the tables are written to, front to back. */
struct area {
    uint8_t *host;
    uint64_t gpa, len, used;
    bool overflow;
};

/* A table under construction: its place, and the builder of its contents. */
struct table {
    struct area *area;
    uint64_t gpa;
    struct aml out;
};

/* --- tables --- */

static void table_begin(struct table *t, struct area *area, const char *signature, uint8_t revision)
{
    uint64_t at = align_up(area->used, 16);

    *t = (struct table){.area = area, .gpa = area->gpa + at};
    if (at > area->len)
        at = area->len;
    aml_init(&t->out, area->host + at, (uint32_t)(area->len - at));
    aml_bytes(&t->out, signature, 4);
    aml_bytes(&t->out, &(uint32_t){0}, 4); /* length: table_end() */
    aml_byte(&t->out, revision);
    aml_byte(&t->out, 0); /* checksum: table_end() */
    aml_bytes(&t->out, OEM_ID, 6);
    aml_bytes(&t->out, OEM_TABLE_ID, 8);
    aml_bytes(&t->out, &(uint32_t){REVISION}, 4);
    aml_bytes(&t->out, CREATOR_ID, 4);
    aml_bytes(&t->out, &(uint32_t){REVISION}, 4);
}

static void put(struct table *t, uint64_t value, uint32_t len)
{
    aml_bytes(&t->out, &value, len);
}

/* The byte that makes the sum of len bytes zero, when it was zero before. */
static uint8_t checksum(const uint8_t *bytes, uint64_t len)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

/* Returns the table's address. */
static uint64_t table_end(struct table *t)
{
    if (t->out.overflow) {
        t->area->overflow = true;
        return 0;
    }
    store_le32(t->out.bytes + 4, t->out.len);
    t->out.bytes[9] = checksum(t->out.bytes, t->out.len);
    t->area->used = t->gpa - t->area->gpa + t->out.len;
    return t->gpa;
}

/* --- FADT, FACS, MADT, MCFG, HPET --- */

/* ACPI 6.4, 5.2.9, table 5.9. Offsets in the table. */
#define FADT_LEN             276
#define FADT_FACS            36
#define FADT_DSDT            40
#define FADT_PROFILE         45
#define FADT_SCI             46
#define FADT_PM1A_EVENT      56
#define FADT_PM1A_CONTROL    64
#define FADT_TIMER           76
#define FADT_GPE0            80
#define FADT_PM1_EVENT_LEN   88
#define FADT_PM1_CONTROL_LEN 89
#define FADT_TIMER_LEN       91
#define FADT_GPE0_LEN        92
#define FADT_C2_LATENCY      96
#define FADT_C3_LATENCY      98
#define FADT_CENTURY         108
#define FADT_PC_FLAGS        109
#define FADT_FLAGS           112
#define FADT_RESET           116
#define FADT_RESET_VALUE     128
#define FADT_MINOR           131
#define FADT_X_DSDT          140
#define FADT_X_PM1A_EVENT    148
#define FADT_X_PM1A_CONTROL  172
#define FADT_X_TIMER         208
#define FADT_X_GPE0          220

#define PROFILE_SERVER       4
#define CMOS_CENTURY         0x32
#define NO_C2                0xfff /* larger than 100 us / 1000 us: not supported */
#define RESET_FULL           0x06  /* ICH9 data sheet, 13.7.5: system reset, reset CPU */
/* Table 5.11. Nothing of the i8042 is said: a kernel that expects it spends most of a second on
 * looking for a keyboard. */
#define PC_LEGACY_DEVICES (1u << 0)
#define PC_NO_VGA         (1u << 2)
/* Table 5.10. */
#define FLAG_WBINVD          (1u << 0)
#define FLAG_C1              (1u << 2)
#define FLAG_NO_SLEEP_BUTTON (1u << 5) /* power button and RTC are of fixed hardware */
#define FLAG_TIMER_32        (1u << 8)
#define FLAG_RESET_REGISTER  (1u << 10)
#define FLAG_APIC_CLUSTER    (1u << 18)
#define APIC_FLAT_MAX        8 /* CPUs that flat logical destinations reach */

#define ACCESS_BYTE          1
#define ACCESS_WORD          2
#define ACCESS_DWORD         3

/* Generic Address Structure in I/O space (5.2.3.2). */
static void store_port(uint8_t *gas, uint16_t port, unsigned bytes, uint8_t access)
{
    gas[0] = 1; /* system I/O */
    gas[1] = (uint8_t)(bytes * 8);
    gas[2] = 0;
    gas[3] = access;
    store_le64(gas + 4, port);
}

/*
 * SMI_CMD stays zero: there is no legacy mode to leave, SCI_EN is set before the kernel runs. (A
 * kernel then neither writes to 0xb2 nor waits for an answer.)
 */
static uint64_t build_fadt(struct area *area, const struct acpi_params *params, uint64_t facs,
                           uint64_t dsdt)
{
    static_assert(LAYOUT_GSI_SCI == PM_SCI_GSI, "the SCI of the layout is that of the device");
    static_assert(PM_TIMER_BITS == 32, "the timer has the width that its flag says");
    const uint16_t pm = LAYOUT_PORT_PM_BASE;
    uint8_t f[FADT_LEN] = {0};
    struct table t;

    store_le32(f + FADT_FACS, (uint32_t)facs);
    store_le32(f + FADT_DSDT, (uint32_t)dsdt);
    f[FADT_PROFILE] = PROFILE_SERVER;
    store_le16(f + FADT_SCI, LAYOUT_GSI_SCI);
    store_le32(f + FADT_PM1A_EVENT, pm + PM_OFFSET_EVENT);
    store_le32(f + FADT_PM1A_CONTROL, pm + PM_OFFSET_CONTROL);
    store_le32(f + FADT_TIMER, pm + PM_OFFSET_TIMER);
    store_le32(f + FADT_GPE0, pm + PM_OFFSET_GPE0);
    f[FADT_PM1_EVENT_LEN] = 4;
    f[FADT_PM1_CONTROL_LEN] = 2;
    f[FADT_TIMER_LEN] = 4;
    f[FADT_GPE0_LEN] = PM_GPE0_BYTES;
    store_le16(f + FADT_C2_LATENCY, NO_C2);
    store_le16(f + FADT_C3_LATENCY, NO_C2);
    f[FADT_CENTURY] = CMOS_CENTURY;
    store_le16(f + FADT_PC_FLAGS, PC_LEGACY_DEVICES | PC_NO_VGA);
    store_le32(f + FADT_FLAGS, FLAG_WBINVD | FLAG_C1 | FLAG_NO_SLEEP_BUTTON | FLAG_TIMER_32 |
                                   FLAG_RESET_REGISTER |
                                   (params->cpus > APIC_FLAT_MAX ? FLAG_APIC_CLUSTER : 0));
    store_port(f + FADT_RESET, LAYOUT_PORT_RESET, 1, ACCESS_BYTE);
    f[FADT_RESET_VALUE] = RESET_FULL;
    f[FADT_MINOR] = 4;
    store_le64(f + FADT_X_DSDT, dsdt);
    store_port(f + FADT_X_PM1A_EVENT, pm + PM_OFFSET_EVENT, 4, ACCESS_WORD);
    store_port(f + FADT_X_PM1A_CONTROL, pm + PM_OFFSET_CONTROL, 2, ACCESS_WORD);
    store_port(f + FADT_X_TIMER, pm + PM_OFFSET_TIMER, 4, ACCESS_DWORD);
    store_port(f + FADT_X_GPE0, pm + PM_OFFSET_GPE0, PM_GPE0_BYTES, ACCESS_BYTE);

    table_begin(&t, area, "FACP", 6);
    aml_bytes(&t.out, f + TABLE_HEADER_LEN, FADT_LEN - TABLE_HEADER_LEN);
    return table_end(&t);
}

/* 5.2.10; aligned to 64 bytes, without the common header. */
static uint64_t build_facs(struct area *area)
{
    const uint32_t len = 64;
    uint64_t at = align_up(area->used, 64);

    if (!range_fits(at, len, area->len)) {
        area->overflow = true;
        return 0;
    }
    uint8_t *facs = area->host + at;
    memset(facs, 0, len);
    memcpy(facs, "FACS", 4);
    store_le32(facs + 4, len);
    facs[32] = 2; /* version */
    area->used = at + len;
    return area->gpa + at;
}

/* 5.2.12, tables 5.19 - 5.21. */
#define MADT_PCAT_COMPAT 1 /* there are 8259s too */
#define MADT_LAPIC       0
#define MADT_IOAPIC      1
#define MADT_OVERRIDE    2
#define MADT_LAPIC_NMI   4
#define MADT_X2APIC      9
#define MADT_X2APIC_NMI  10
#define MADT_ENABLED     1
#define MADT_ALL_CPUS    0xff
#define MADT_ALL_CPUS_X2 0xffffffff
#define MPS_HIGH_LEVEL   0x0d /* table 5.26: active high, level-triggered */
#define PIT_GSI          2

static void madt_override(struct table *t, uint8_t isa_irq, uint32_t gsi, uint16_t flags)
{
    put(t, MADT_OVERRIDE | 10 << 8, 2);
    put(t, 0, 1); /* ISA */
    put(t, isa_irq, 1);
    put(t, gsi, 4);
    put(t, flags, 2);
}

static uint64_t build_madt(struct area *area, const struct acpi_params *params)
{
    struct table t;

    table_begin(&t, area, "APIC", 5);
    put(&t, LAYOUT_LAPIC, 4);
    put(&t, MADT_PCAT_COMPAT, 4);
    /* The APIC ID and the processor UID are the index of the vCPU. */
    for (uint32_t i = 0; i < params->cpus; i++) {
        if (i < LAYOUT_XAPIC_CPUS_MAX) {
            put(&t, MADT_LAPIC | 8 << 8 | i << 16 | i << 24, 4);
            put(&t, MADT_ENABLED, 4);
        } else {
            put(&t, MADT_X2APIC | 16 << 8, 4);
            put(&t, i, 4);
            put(&t, MADT_ENABLED, 4);
            put(&t, i, 4);
        }
    }
    put(&t, MADT_IOAPIC | 12 << 8, 4); /* ID 0 */
    put(&t, LAYOUT_IOAPIC, 4);
    put(&t, 0, 4); /* GSI base */
    madt_override(&t, 0, PIT_GSI, 0);
    madt_override(&t, LAYOUT_GSI_SCI, LAYOUT_GSI_SCI, MPS_HIGH_LEVEL);
    put(&t, MADT_LAPIC_NMI | 6 << 8 | MADT_ALL_CPUS << 16, 3);
    put(&t, 0, 2); /* polarity and trigger mode of the bus */
    put(&t, 1, 1); /* LINT1 */
    if (params->cpus > LAYOUT_XAPIC_CPUS_MAX) {
        put(&t, MADT_X2APIC_NMI | 12 << 8, 4); /* flags as above */
        put(&t, MADT_ALL_CPUS_X2, 4);
        put(&t, 1, 4);
    }
    return table_end(&t);
}

/* PCI Firmware Specification 3.2, 4.1.2. */
static uint64_t build_mcfg(struct area *area)
{
    struct table t;

    table_begin(&t, area, "MCFG", 1);
    put(&t, 0, 8);
    put(&t, LAYOUT_ECAM_BASE, 8);
    put(&t, 0, 2); /* segment */
    put(&t, 0, 1);
    put(&t, LAYOUT_ECAM_BUSES - 1, 1);
    put(&t, 0, 4);
    return table_end(&t);
}

/* IA-PC HPET 1.0a, 3.2.4. */
#define HPET_NO_PROTECTION 0

static uint64_t build_hpet(struct area *area)
{
    static_assert(LAYOUT_HPET == HPET_BASE, "the HPET stands where the layout says");
    struct table t;

    table_begin(&t, area, "HPET", 1);
    put(&t, HPET_BLOCK_ID, 4);
    put(&t, 64u << 8, 4); /* Generic Address Structure: memory, 64 bits */
    put(&t, LAYOUT_HPET, 8);
    put(&t, 0, 1); /* number of the block */
    put(&t, HPET_MIN_PERIOD_TICKS, 2);
    put(&t, HPET_NO_PROTECTION, 1);
    return table_end(&t);
}

/* --- DSDT --- */

#define OP_ARG0       0x68
#define OP_ARG1       0x69
#define OP_ARG3       0x6b
#define OP_LOCAL0     0x60
#define OP_RETURN     0xa4
#define OP_OR         0x7d
#define OP_LNOT       0x92
#define OP_LEQUAL     0x93
#define OP_CREATE_DW  0x8a
#define OP_BUFFER     0x11

#define OSC_UUID_BAD  0x04 /* ACPI 6.4, 6.2.11: status bits of the first DWord */
#define OSC_REV_BAD   0x08

#define PCI_SLOTS     32
#define PCI_PINS      4
#define PIRQ_GSI_BASE 16 /* PIRQA; bus/pci.h, pci_slot_pirq(); dev/lpc.h */

/*
 * _OSC of the host bridge (PCI Firmware Specification 3.2, 4.5.1): the OS gets every control that
 * it asks for, since firmware uses none of it.
 *
 *     Method (_OSC, 4, Serialized) {
 *         CreateDWordField (Arg3, 0, CDW1)
 *         If (Arg0 == ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766")) {
 *             If (!(Arg1 == 1)) { CDW1 |= 8 }
 *         } Else { CDW1 |= 4 }
 *         Return (Arg3)
 *     }
 */
static void add_osc(struct aml *a)
{
    static const uint8_t uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
                                     0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};
    uint32_t method = aml_method_begin(a, "_OSC", 4, true);

    aml_byte(a, OP_CREATE_DW);
    aml_byte(a, OP_ARG3);
    aml_integer(a, 0);
    aml_path(a, "CDW1");

    uint32_t if_uuid = aml_if_begin(a);
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, OP_ARG0);
    aml_byte(a, OP_BUFFER);
    uint32_t buffer = a->len;
    aml_integer(a, sizeof(uuid));
    aml_bytes(a, uuid, sizeof(uuid));
    aml_end(a, buffer);

    uint32_t if_revision = aml_if_begin(a);
    aml_byte(a, OP_LNOT);
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, OP_ARG1);
    aml_integer(a, 1);
    aml_byte(a, OP_OR);
    aml_path(a, "CDW1");
    aml_integer(a, OSC_REV_BAD);
    aml_path(a, "CDW1");
    aml_end(a, if_revision);
    aml_end(a, if_uuid);

    uint32_t otherwise = aml_else_begin(a);
    aml_byte(a, OP_OR);
    aml_path(a, "CDW1");
    aml_integer(a, OSC_UUID_BAD);
    aml_path(a, "CDW1");
    aml_end(a, otherwise);

    aml_byte(a, OP_RETURN);
    aml_byte(a, OP_ARG3);
    aml_end(a, method);
}

/* 6.2.13: each pin of each slot to an input of the IOAPIC. */
static void add_prt(struct aml *a)
{
    aml_name(a, "_PRT");
    uint32_t table = aml_package_begin(a, PCI_SLOTS * PCI_PINS);
    for (uint32_t slot = 0; slot < PCI_SLOTS; slot++) {
        for (uint32_t pin = 0; pin < PCI_PINS; pin++) {
            uint32_t entry = aml_package_begin(a, 4);
            aml_integer(a, slot << 16 | 0xffff); /* any function */
            aml_integer(a, pin);
            aml_integer(a, 0); /* no link device: the GSI follows */
            aml_integer(a, PIRQ_GSI_BASE + 4 + (slot + pin) % 4);
            aml_end(a, entry);
        }
    }
    aml_end(a, table);
}

static void add_host_bridge_resources(struct aml *a, const struct acpi_params *params)
{
    aml_name(a, "_CRS");
    uint32_t crs = aml_resources_begin(a);
    aml_window_bus(a, 0, LAYOUT_ECAM_BUSES - 1);
    aml_io(a, 0xcf8, 8);
    aml_window_io(a, 0, 0xcf7);
    aml_window_io(a, 0xd00, LAYOUT_PCI_IO_END - 1);
    aml_window_memory32(a, 0xa0000, 0xbffff);
    aml_window_memory32(a, LAYOUT_PCI_MEM32, LAYOUT_PCI_MEM32_END - 1);
    if (params->pci_mem64_len)
        aml_window_memory64(a, params->pci_mem64_base,
                            params->pci_mem64_base + params->pci_mem64_len - 1);
    aml_resources_end(a, crs);
}

static void add_serials(struct aml *a, unsigned count)
{
    static const struct {
        uint16_t port;
        uint8_t irq;
    } serials[] = {
        {0x3f8, 4},
        {0x2f8, 3},
        {0x3e8, 4},
        {0x2e8, 3},
    };

    for (unsigned i = 0; i < count && i < ARRAY_LEN(serials); i++) {
        const char name[] = {'C', 'O', 'M', (char)('1' + i), '\0'};
        uint32_t device = aml_device_begin(a, name);
        aml_name_eisaid(a, "_HID", "PNP0501");
        aml_name_integer(a, "_UID", i + 1);
        aml_name(a, "_CRS");
        uint32_t crs = aml_resources_begin(a);
        aml_io(a, serials[i].port, 8);
        aml_irq(a, serials[i].irq);
        aml_resources_end(a, crs);
        aml_end(a, device);
    }
}

/* What hangs off the LPC bridge, 00:1f.0. */
static void add_isa(struct aml *a, const struct acpi_params *params)
{
    uint32_t isa = aml_device_begin(a, "ISA");
    aml_name_integer(a, "_ADR", 0x1f0000);

    uint32_t rtc = aml_device_begin(a, "RTC");
    aml_name_eisaid(a, "_HID", "PNP0B00");
    aml_name(a, "_CRS");
    uint32_t crs = aml_resources_begin(a);
    aml_io(a, 0x70, 8);
    aml_irq(a, 8);
    aml_resources_end(a, crs);
    aml_end(a, rtc);

    add_serials(a, params->serial_count);

    static_assert(LAYOUT_PORT_PVPANIC == PVPANIC_PORT, "pvpanic stands where the layout says");
    uint32_t pvpanic = aml_device_begin(a, "PEVT");
    aml_name_string(a, "_HID", "QEMU0001");
    aml_name(a, "_CRS");
    crs = aml_resources_begin(a);
    aml_io(a, LAYOUT_PORT_PVPANIC, 1);
    aml_resources_end(a, crs);
    aml_end(a, pvpanic);

    aml_end(a, isa);
}

static void add_pci(struct aml *a, const struct acpi_params *params)
{
    uint32_t pci = aml_device_begin(a, "PCI0");
    aml_name_eisaid(a, "_HID", "PNP0A08");
    aml_name_eisaid(a, "_CID", "PNP0A03");
    aml_name_integer(a, "_UID", 0);
    aml_name_integer(a, "_SEG", 0);
    aml_name_integer(a, "_BBN", 0);
    add_host_bridge_resources(a, params);
    add_osc(a);
    add_prt(a);
    add_isa(a, params);
    aml_end(a, pci);
}

/* The same as in the HPET table, for the owner of the addresses (IA-PC HPET 1.0a, 3.2.5.1). The
 * interrupts are the guest's choice. */
static void add_hpet(struct aml *a)
{
    uint32_t device = aml_device_begin(a, "HPET");
    aml_name_eisaid(a, "_HID", "PNP0103");
    aml_name_integer(a, "_UID", 0);
    aml_name(a, "_CRS");
    uint32_t crs = aml_resources_begin(a);
    aml_memory32_fixed(a, LAYOUT_HPET, HPET_BYTES);
    aml_resources_end(a, crs);
    aml_end(a, device);
}

/* What is in use and belongs to no device: ECAM must be reserved here too (PCI Firmware
 * Specification 3.2, 4.1.2). */
static void add_motherboard(struct aml *a)
{
    uint32_t device = aml_device_begin(a, "MBRD");
    aml_name_eisaid(a, "_HID", "PNP0C02");
    aml_name_integer(a, "_UID", 0);
    aml_name(a, "_CRS");
    uint32_t crs = aml_resources_begin(a);
    aml_io(a, 0xb2, 2); /* APM control and status */
    aml_io(a, LAYOUT_PORT_PM_BASE, LAYOUT_PORT_PM_LEN);
    aml_memory32_fixed(a, LAYOUT_ECAM_BASE, LAYOUT_ECAM_BUSES * MIB);
    aml_resources_end(a, crs);
    aml_end(a, device);
}

/* Processor devices say no more than which entry of the MADT is theirs: 30 bytes each. */
static void add_cpus(struct aml *a, unsigned cpus)
{
    for (unsigned i = 0; i < cpus; i++) {
        char name[12];
        snprintf(name, sizeof(name), "C%03X", i);
        uint32_t device = aml_device_begin(a, name);
        aml_name_string(a, "_HID", "ACPI0007");
        aml_name_integer(a, "_UID", i);
        aml_end(a, device);
    }
}

static uint64_t build_dsdt(struct area *area, const struct acpi_params *params)
{
    struct table t;

    table_begin(&t, area, "DSDT", 2); /* 2: integers of 64 bits */
    struct aml *a = &t.out;
    uint32_t sb = aml_scope_begin(a, "\\_SB");
    add_pci(a, params);
    if (params->hpet)
        add_hpet(a);
    add_motherboard(a);
    add_cpus(a, params->cpus);
    aml_end(a, sb);

    aml_name(a, "\\_S5"); /* 7.4.2: PM1a and PM1b SLP_TYP */
    uint32_t s5 = aml_package_begin(a, 4);
    aml_integer(a, PM_SLP_TYP_S5);
    aml_integer(a, PM_SLP_TYP_S5);
    aml_integer(a, 0);
    aml_integer(a, 0);
    aml_end(a, s5);
    return table_end(&t);
}

/* --- roots --- */

static uint64_t build_root(struct area *area, const char *signature, unsigned entry_len,
                           const uint64_t *tables, unsigned count)
{
    struct table t;

    table_begin(&t, area, signature, 1);
    for (unsigned i = 0; i < count; i++)
        put(&t, tables[i], entry_len);
    return table_end(&t);
}

/* 5.2.5.3 */
#define RSDP_LEN    36
#define RSDP_V1_LEN 20

static void write_rsdp(uint8_t *rsdp, uint64_t rsdt, uint64_t xsdt)
{
    memset(rsdp, 0, RSDP_LEN);
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, OEM_ID, 6);
    rsdp[15] = 2; /* revision */
    store_le32(rsdp + 16, (uint32_t)rsdt);
    store_le32(rsdp + 20, RSDP_LEN);
    store_le64(rsdp + 24, xsdt);
    rsdp[8] = checksum(rsdp, RSDP_V1_LEN);
    rsdp[32] = checksum(rsdp, RSDP_LEN);
}

static int check(const struct acpi_params *params, gpa_t area, uint64_t len, struct err *err)
{
    if (params->cpus == 0 || params->cpus > CPUS_MAX)
        return err_set(err, EINVAL, "ACPI tables for 1 to %u CPUs only, not for %u", CPUS_MAX,
                       params->cpus);
    if (params->pci_mem64_len && params->phys_bits < 64 &&
        !range_fits(params->pci_mem64_base, params->pci_mem64_len, 1ULL << params->phys_bits))
        return err_set(err, EINVAL,
                       "the 64-bit PCI window lies beyond the CPU's %u bits of address",
                       params->phys_bits);
    if (area.a % PAGE_SIZE_BYTES || !range_fits(area.a, len, 4 * GIB) || len < RSDP_LEN)
        return err_set(err, EINVAL, "bad place for the ACPI tables: 0x%llx",
                       (unsigned long long)area.a);
    return 0;
}

int acpi_build(struct mem *mem, const struct acpi_params *params, gpa_t area_gpa, uint64_t len,
               uint64_t *rsdp_gpa, struct err *err)
{
    int ret = check(params, area_gpa, len, err);
    if (ret < 0)
        return ret;
    struct area area = {.gpa = area_gpa.a, .len = len, .used = RSDP_LEN};
    area.host = mem_ptr(mem, area_gpa, len, MEM_WRITE);
    if (!area.host)
        return err_set(err, EFAULT, "the ACPI tables at 0x%llx are not in RAM",
                       (unsigned long long)area_gpa.a);

    uint64_t facs = build_facs(&area);
    uint64_t dsdt = build_dsdt(&area, params);
    const uint64_t tables[] = {
        build_fadt(&area, params, facs, dsdt),
        build_madt(&area, params),
        build_mcfg(&area),
        params->hpet ? build_hpet(&area) : 0,
    };
    const unsigned table_count = ARRAY_LEN(tables) - !params->hpet;
    uint64_t rsdt = build_root(&area, "RSDT", 4, tables, table_count);
    uint64_t xsdt = build_root(&area, "XSDT", 8, tables, table_count);
    if (area.overflow)
        return err_set(err, ENOSPC, "the ACPI tables for %u CPUs take more than %llu KiB",
                       params->cpus, (unsigned long long)(len / KIB));
    write_rsdp(area.host, rsdt, xsdt);
    *rsdp_gpa = area_gpa.a;
    return 0;
}

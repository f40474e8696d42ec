/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/acpi.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "vm/layout.h"

#define AREA GPA(LAYOUT_BIOS_AREA)
#define LEN  (96 * KIB) /* as the board gives it */

static struct mem *mem;

static struct acpi_params make_params(unsigned cpus)
{
    return (struct acpi_params){.cpus = cpus,
                                .pci_mem64_base = 32 * GIB,
                                .pci_mem64_len = 32 * GIB,
                                .phys_bits = 40,
                                .serial_count = 4,
                                .hpet = true};
}

static const uint8_t *guest(uint64_t gpa, uint64_t len)
{
    return mem_ptr(mem, GPA(gpa), len, MEM_READ);
}

static bool sums_to_zero(const uint8_t *bytes, uint64_t len)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return sum == 0;
}

/* A table in the area with a good checksum, or NULL. */
static const uint8_t *table_at(uint64_t gpa)
{
    const uint8_t *t = guest(gpa, 36);
    if (!t || gpa < AREA.a || gpa + load_le32(t + 4) > AREA.a + LEN)
        return NULL;
    t = guest(gpa, load_le32(t + 4));
    return t && sums_to_zero(t, load_le32(t + 4)) ? t : NULL;
}

/* Through RSDP and XSDT; NULL: not there. */
static const uint8_t *find_table(uint64_t rsdp, const char *signature)
{
    const uint8_t *xsdt = table_at(load_le64(guest(rsdp, 36) + 24));
    for (uint32_t at = 36; xsdt && at + 8 <= load_le32(xsdt + 4); at += 8) {
        const uint8_t *t = table_at(load_le64(xsdt + at));
        if (t && memcmp(t, signature, 4) == 0)
            return t;
    }
    return NULL;
}

static void check_madt(const uint8_t *madt, unsigned cpus)
{
    unsigned xapic = 0, x2apic = 0, ioapics = 0, overrides = 0, nmis = 0;
    bool in_order = true;
    uint32_t len = load_le32(madt + 4), at = 44;

    for (; at + 2 <= len && madt[at + 1] >= 2; at += madt[at + 1]) {
        const uint8_t *e = madt + at;
        switch (e[0]) {
        case 0:
            in_order &= e[2] == xapic && e[3] == xapic && load_le32(e + 4) == 1;
            xapic++;
            break;
        case 1:
            ioapics += load_le32(e + 4) == LAYOUT_IOAPIC && load_le32(e + 8) == 0;
            break;
        case 2:
            overrides += (e[3] == 0 && load_le32(e + 4) == 2) ||
                         (e[3] == 9 && load_le32(e + 4) == 9 && load_le16(e + 8) == 0x0d);
            break;
        case 9:
            in_order &= load_le32(e + 4) == 255 + x2apic && load_le32(e + 12) == 255 + x2apic &&
                        load_le32(e + 8) == 1;
            x2apic++;
            break;
        case 4:
            nmis += e[2] == 0xff && e[5] == 1;
            break;
        case 10:
            nmis += load_le32(e + 4) == 0xffffffff && e[8] == 1;
            break;
        default:
            ok(false, "an unknown entry in the MADT");
        }
    }
    is_int(at, len, "MADT: entries fill the table");
    is_int(xapic, cpus < 255 ? cpus : 255, "local APICs");
    is_int(x2apic, cpus < 255 ? 0 : cpus - 255, "local x2APICs");
    ok(in_order, "IDs are in order, all enabled");
    is_int(ioapics, 1, "IOAPIC");
    is_int(overrides, 2, "overrides of the PIT and the SCI");
    is_int(nmis, cpus < 256 ? 1 : 2, "NMI pins");
}

static void check_fadt(const uint8_t *fadt, unsigned cpus)
{
    is_int(load_le32(fadt + 4), 276, "FADT: length of revision 6");
    is_int(fadt[8], 6, "revision");
    is_int(load_le16(fadt + 46), 9, "SCI");
    is_int(load_le32(fadt + 48), 0, "no SMI command port: always in ACPI mode");
    is_int(load_le32(fadt + 56), LAYOUT_PORT_PM_BASE, "PM1a event");
    is_int(load_le32(fadt + 64), LAYOUT_PORT_PM_BASE + 4, "PM1a control");
    is_int(load_le32(fadt + 76), LAYOUT_PORT_PM_BASE + 8, "PM timer");
    is_int(load_le32(fadt + 80), LAYOUT_PORT_PM_BASE + 0x20, "GPE0");
    is_int(fadt[92], 16, "GPE0 length");
    is_int(load_le64(fadt + 120), LAYOUT_PORT_RESET, "reset register");
    is_int(fadt[128], 6, "reset value");
    ok(load_le32(fadt + 112) & 1 << 10, "reset register is supported");
    is_int(load_le32(fadt + 112) & 0x70, 0x20,
           "power button and RTC alarm are in the PM1 registers");
    ok(load_le32(fadt + 112) & 1 << 8, "the timer has 32 bits");
    is_int(!!(load_le32(fadt + 112) & 1 << 18), cpus > 8, "APIC clusters from 9 CPUs on");
    const uint8_t *facs = guest(load_le32(fadt + 36), 64);
    ok(load_le32(fadt + 36) % 64 == 0 && facs && memcmp(facs, "FACS", 4) == 0, "FACS");
    const uint8_t *dsdt = table_at(load_le64(fadt + 140));
    ok(dsdt && memcmp(dsdt, "DSDT", 4) == 0, "DSDT");
    is_int(load_le32(fadt + 40), load_le64(fadt + 140), "and the same at 32 bits");
}

static void test_tables(unsigned cpus)
{
    struct acpi_params params = make_params(cpus);
    struct err err = ERR_INIT;
    uint64_t rsdp = 0;

    printf("# %u CPUs\n", cpus);
    mem_zero(mem, GPA(0xa0000), 0x60000);
    memset(mem_ptr(mem, AREA, LEN, MEM_WRITE), 0xa5, LEN);
    is_int(acpi_build(mem, &params, AREA, LEN, &rsdp, &err), 0, "tables are built");
    const uint8_t *r = guest(rsdp, 36);
    ok(rsdp % 16 == 0 && memcmp(r, "RSD PTR ", 8) == 0 && r[15] == 2, "RSDP");
    ok(sums_to_zero(r, 20) && sums_to_zero(r, 36), "its checksums");
    const uint8_t *rsdt = table_at(load_le32(r + 16));
    ok(rsdt && memcmp(rsdt, "RSDT", 4) == 0 && load_le32(rsdt + 4) == 36 + 4 * 4, "RSDT");
    const uint8_t *fadt = find_table(rsdp, "FACP"), *madt = find_table(rsdp, "APIC"),
                  *mcfg = find_table(rsdp, "MCFG"), *hpet = find_table(rsdp, "HPET");
    if (!ok(fadt && madt && mcfg && hpet, "XSDT has FADT, MADT, MCFG, HPET, with good checksums"))
        return;
    check_fadt(fadt, cpus);
    check_madt(madt, cpus);
    ok(load_le64(mcfg + 44) == LAYOUT_ECAM_BASE && mcfg[54] == 0 &&
           mcfg[55] == LAYOUT_ECAM_BUSES - 1,
       "MCFG");
    ok(load_le32(hpet + 36) == 0x8086a201 && hpet[40] == 0 && load_le64(hpet + 44) == LAYOUT_HPET,
       "HPET");
    uint64_t before = 0;
    ok(mem_read(mem, GPA(AREA.a + LEN), &before, 8) == 0 && before == 0, "nothing behind the area");
}

static void test_space(void)
{
    struct acpi_params params = make_params(1000);
    struct err err = ERR_INIT;
    uint64_t rsdp;

    is_int(acpi_build(mem, &params, AREA, LEN, &rsdp, &err), 0, "1000 CPUs fit");
    params.cpus = 4096;
    is_int(acpi_build(mem, &params, AREA, LEN, &rsdp, &err), -ENOSPC, "4096 do not");
    ok(strstr(err.text, "4096 CPUs"), "the error says so");
    for (uint64_t len = 0; len < 8 * KIB; len += 40) {
        params.cpus = 1;
        mem_zero(mem, AREA, LEN);
        int ret = acpi_build(mem, &params, AREA, len, &rsdp, &err);
        uint64_t behind[8] = {0};
        mem_read(mem, GPA(AREA.a + len), behind, sizeof(behind));
        if (behind[0] | behind[1] | behind[7] || (ret == 0 && len < 2 * KIB) ||
            (ret && ret != (len < 36 ? -EINVAL : -ENOSPC)))
            ok(false, "a small area is respected");
    }
    params.cpus = 0;
    is_int(acpi_build(mem, &params, AREA, LEN, &rsdp, &err), -EINVAL, "no CPUs");
    params = make_params(1);
    params.phys_bits = 36;
    params.pci_mem64_base = 64 * GIB;
    is_int(acpi_build(mem, &params, AREA, LEN, &rsdp, &err), -EINVAL, "window beyond phys_bits");
    params = make_params(1);
    is_int(acpi_build(mem, &params, GPA(0xe0010), LEN, &rsdp, &err), -EINVAL, "misaligned area");
    is_int(acpi_build(mem, &params, GPA(GIB), LEN, &rsdp, &err), -EFAULT, "area not in RAM");
}

/* --- the ACPI compiler's opinion --- */

static bool save(const char *dir, const char *name, const uint8_t *table, uint32_t len)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s.aml", dir, name);
    FILE *out = fopen(path, "wb");
    if (!out)
        return false;
    bool done = fwrite(table, 1, len, out) == len;
    return fclose(out) == 0 && done;
}

/* Runs a command in dir, with its words in the file log, which are shown when it fails. */
static bool run(const char *dir, const char *command)
{
    char line[512];
    snprintf(line, sizeof(line), "cd %s && (%s) > log 2>&1 || { sed 's/^/# /' log; false; }", dir,
             command);
    return system(line) == 0;
}

/* Disassemble, compile again: both must find nothing to say. */
static void check_by_iasl(const char *dir, const char *name)
{
    char command[256], what[64];

    snprintf(what, sizeof(what), "iasl: %s is good", name);
    snprintf(command, sizeof(command),
             "iasl -p %s -d %s.aml > out 2>&1; status=$?; cat out; "
             "! grep -iE 'warning|error|invalid' out && [ $status = 0 ]",
             name, name);
    bool good = run(dir, command);
    snprintf(command, sizeof(command),
             "iasl -p again %s.dsl > out 2>&1; status=$?; cat out; "
             "! grep -E '[1-9][0-9]* (Error|Warning|Remark)' out && [ $status = 0 ]",
             name);
    ok(good && run(dir, command), what);
}

static void test_iasl(unsigned cpus)
{
    struct acpi_params params = make_params(cpus);
    struct err err = ERR_INIT;
    char dir[] = "/tmp/hull-acpi-XXXXXX";
    uint64_t rsdp;

    if (system("iasl -v > /dev/null 2>&1") != 0) {
        tap_skip("iasl", "iasl (acpica-tools) is not installed");
        return;
    }
    if (!mkdtemp(dir) || acpi_build(mem, &params, AREA, LEN, &rsdp, &err) < 0) {
        ok(false, "tables for iasl");
        return;
    }
    const uint8_t *fadt = find_table(rsdp, "FACP");
    const struct {
        const char *name;
        const uint8_t *table;
    } tables[] = {
        {"fadt",                           fadt   },
        {      "apic",                 find_table(rsdp, "APIC")},
        {      "mcfg",                 find_table(rsdp, "MCFG")},
        {      "hpet",                 find_table(rsdp, "HPET")},
        {      "dsdt", table_at(load_le64(fadt + 140))       },
        { "facs",                             guest(load_le32(fadt + 36),                                    64)},
        { "xsdt",                      table_at(load_le64(guest(rsdp,                             36) + 24))},
        { "rsdt",                      table_at(load_le32(guest(rsdp,                             36) + 16))},
    };
    for (unsigned i = 0; i < ARRAY_LEN(tables); i++) {
        if (save(dir, tables[i].name, tables[i].table, load_le32(tables[i].table + 4)))
            check_by_iasl(dir, tables[i].name);
        else
            ok(false, "table is saved");
    }
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    if (system(command) != 0)
        printf("# cannot remove %s\n", dir);
}

int main(void)
{
    static const unsigned counts[] = {1, 2, 16, 64, 255, 256, 300};
    const struct mem_options options = {0};
    struct err err = ERR_INIT;

    if (mem_new(&mem, &options, &err) < 0 || mem_add_ram(mem, "ram-low", GPA(0), 2 * MIB, &err) < 0)
        return 1;
    for (unsigned i = 0; i < ARRAY_LEN(counts); i++)
        test_tables(counts[i]);
    test_space();
    test_iasl(2);
    test_iasl(300);
    mem_free(mem);
    return tap_done();
}

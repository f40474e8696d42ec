/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_fixture.h"

static const struct elf_spec kernel_spec = {.paddr = MIB,
                                            .vaddr = 0xffffffff80100000,
                                            .entry = MIB + 0x40,
                                            .text_len = 0x800,
                                            .bss_len = 0x3000,
                                            .is_64 = true,
                                            .pvh_note = true};

static uint8_t bytes[IMAGE_ELF_MAX];

static void test_load(bool is_64)
{
    struct fixture f;
    struct elf_spec spec = kernel_spec;
    spec.is_64 = is_64;
    spec.vaddr = is_64 ? spec.vaddr : MIB;
    struct boot_image image = make_elf(bytes, &spec);
    char initrd[32], module[32];
    struct config_module config = {.path = module, .args = (char[]){"a b"}};

    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    write_file(initrd, "the initrd", 10);
    write_file(module, "the module", 10);
    f.params.initrd = initrd;
    f.params.modules = &config;
    f.params.module_count = 1;
    f.params.cmdline = "root=/dev/vda";
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), 0, "PVH kernel is loaded");
    unlink(initrd);
    unlink(module);

    struct cpu_sregs *s = &f.result.sregs;
    is_int(f.result.regs.rip, MIB + 0x40, "EIP is the note's");
    is_int(s->cr0, CPU_CR0_PE | CPU_CR0_ET, "protected mode, no paging");
    is_int(s->cr4 | s->efer, 0, "CR4, EFER");
    ok(s->cs.attr == CPU_SEG_CODE32 && s->cs.base == 0 && s->cs.limit == 0xffffffff, "CS");
    ok(s->ds.attr == CPU_SEG_DATA && s->es.attr == CPU_SEG_DATA && s->ss.attr == CPU_SEG_DATA,
       "DS, ES, SS");
    ok(s->tr.attr == CPU_SEG_TSS && s->tr.base == 0 && s->tr.limit == 0x67, "TR");
    ok(guest_has(&f, MIB, bytes + 0x1000, 0x800), "text");
    ok(guest_is_zero(&f, MIB + 0x800, 0x3000), "bss is zeroed");

    uint64_t info = f.result.regs.gpr[CPU_RBX];
    is_int(guest32(&f, info), 0x336ec578, "start_info: magic");
    is_int(guest32(&f, info + 4), 1, "version");
    is_int(guest32(&f, info + 8), 0, "flags");
    is_int(guest32(&f, info + 12), 2, "modules");
    uint64_t mods = guest64(&f, info + 16);
    ok(guest_has(&f, guest64(&f, mods), "the initrd", 10), "the initrd first");
    is_int(guest64(&f, mods + 8), 10, "its length");
    is_int(guest64(&f, mods + 16), 0, "no command line");
    ok(guest_has(&f, guest64(&f, mods + 32), "the module", 10), "then the module");
    is_str(guest_text(&f, guest64(&f, mods + 48)), "a b", "with its arguments");
    is_int(guest64(&f, mods) % PAGE_SIZE_BYTES, 0, "page aligned");
    is_str(guest_text(&f, guest64(&f, info + 24)), "root=/dev/vda", "command line");
    is_int(guest64(&f, info + 32), LAYOUT_BIOS_AREA, "RSDP");
    uint64_t map = guest64(&f, info + 40);
    is_int(guest32(&f, info + 48), f.params.map_count, "memory map");
    is_int(guest64(&f, map + 3 * 24), LAYOUT_KERNEL_MIN, "RAM from 1 MiB");
    is_int(guest32(&f, map + 3 * 24 + 16), 1, "of type RAM");
    fixture_free(&f);
}

static void test_note_forms(void)
{
    struct fixture f;
    struct boot_image image = make_elf(bytes, &kernel_spec);

    fixture_new(&f, 64 * MIB);
    store_le32(bytes + 0x804, 4); /* a 4-byte value */
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), 0, "a 4-byte entry point");
    store_le32(bytes + 0x804, 2);
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), -ENOEXEC, "not of 2 bytes");
    make_elf(bytes, &kernel_spec);
    store_le32(bytes + 0x804, 0xfffffff0);
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), -ENOEXEC, "note beyond the file");
    make_elf(bytes, &kernel_spec);
    store_le64(bytes + 0x810, 0x200000);
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), -EINVAL, "entry outside");
    fixture_free(&f);
}

/* Fields of the only PT_LOAD of a 64-bit image. */
#define PH(field) (sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, field))

static void test_refused(void)
{
    static const struct {
        size_t offset, size;
        uint64_t value;
        int ret;
        const char *what;
    } cases[] = {
        {offsetof(Elf64_Ehdr, e_machine), 2,                             EM_AARCH64,                  -ENOEXEC,"another machine"},
        {EI_DATA,                   1,                       ELFDATA2MSB,                                 -ENOEXEC,                           "big-endian"},
        {offsetof(Elf64_Ehdr,                   e_phoff),           8,              ~0ULL - 4,                              -EINVAL,                      "headers outside"},
        {offsetof(Elf64_Ehdr,  e_phnum),            2,                       0xffff,                                         -EINVAL,"too many headers"},
        {offsetof(Elf64_Ehdr,            e_phentsize),    2,                                 8,  -EINVAL,"headers too small"},
        {PH(p_offset),                  8,                     ~0ULL,-EINVAL,                         "segment beyond the file"},
        {PH(p_filesz),              8,0x100000,   -EINVAL,      "segment truncated"},
        {PH(p_memsz),           8,                  1,                          -EINVAL,                                                "memsz below filesz"},
        {PH(p_memsz),                  8,    ~0ULL,-EINVAL,"memsz wraps around"},
        {PH(p_memsz),              8,              GIB,                                    -ENOSPC,                                                                                                "needs more RAM"                                                                          },
        {PH(p_paddr),                8,      0xffff0,-ENOSPC,"in the BIOS area"},
        {PH(p_paddr),            8,          LAYOUT_LAPIC,                                      -ENOSPC,                                                                                                                                                      "on the local APIC"                                                                                                                                                                                                                                                                                                                    },
        {PH(p_type),       4, PT_NULL,-EINVAL,"nothing to load"},
    };
    struct fixture f;

    fixture_new(&f, 64 * MIB);
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct boot_image image = make_elf(bytes, &kernel_spec);
        store_le(bytes + cases[i].offset, cases[i].value, cases[i].size);
        /* Where the segment was moved, move the entry point too. */
        if (cases[i].offset == PH(p_paddr))
            store_le64(bytes + 0x810, cases[i].value);
        is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), cases[i].ret, cases[i].what);
    }
    fixture_free(&f);
}

/* A kernel in the usual place of the boot information gets that, and the information another. */
static void test_low_kernel(void)
{
    struct fixture f;
    struct elf_spec spec = kernel_spec;
    spec.paddr = LAYOUT_BOOT_INFO;
    spec.entry = LAYOUT_BOOT_INFO;
    struct boot_image image = make_elf(bytes, &spec);

    fixture_new(&f, 64 * MIB);
    is_int(boot_load_pvh(&f.params, &image, &f.result, &f.err), 0, "a kernel below 640 KiB");
    ok(f.result.regs.gpr[CPU_RBX] >= LAYOUT_BOOT_INFO + 0x3800, "the information is behind it");
    ok(guest_has(&f, LAYOUT_BOOT_INFO, bytes + 0x1000, 0x800), "text is whole");
    is_int(guest32(&f, f.result.regs.gpr[CPU_RBX]), 0x336ec578, "information too");
    fixture_free(&f);
}

int main(void)
{
    test_load(true);
    test_load(false);
    test_note_forms();
    test_refused();
    test_low_kernel();
    return tap_done();
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What the protocols' tests do not reach: notes, several segments, extents, entry points. */
#include "vm/boot_elf.h"

#include "vm/boot_fixture.h"

static uint8_t bytes[IMAGE_ELF_MAX];

static void put_note(uint8_t *at, const char *owner, uint32_t type, uint32_t desc_len)
{
    store_le32(at, (uint32_t)strlen(owner) + 1);
    store_le32(at + 4, desc_len);
    store_le32(at + 8, type);
    memcpy(at + 12, owner, strlen(owner) + 1);
}

static void test_notes(void)
{
    struct elf_spec spec = {
        .paddr = MIB, .vaddr = MIB, .entry = MIB, .text_len = 16, .is_64 = true, .pvh_note = true};
    struct boot_image image = make_elf(bytes, &spec);
    struct boot_elf elf;
    uint64_t value = 0;
    /* The second program header. */
    uint8_t *ph = bytes + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr);

    memset(bytes + 0x800, 0, 0x200);
    put_note(bytes + 0x800, "GNU", 3, 20);
    put_note(bytes + 0x800 + 16 + 20, "Xen", 18, 4);
    store_le32(bytes + 0x800 + 36 + 16, 0x1234);
    store_le64(ph + offsetof(Elf64_Phdr, p_filesz), 36 + 20);
    is_int(boot_elf_parse(&image, &elf, NULL), 0, "parse");
    ok(boot_elf_note(&elf, &image, "Xen", 18, &value) && value == 0x1234,
       "the second of two notes");
    ok(!boot_elf_note(&elf, &image, "Xen", 17, &value), "another type is not there");
    ok(!boot_elf_note(&elf, &image, "GNU", 18, &value), "another owner is not either");
    store_le64(ph + offsetof(Elf64_Phdr, p_filesz), 36 + 19);
    boot_elf_parse(&image, &elf, NULL);
    ok(!boot_elf_note(&elf, &image, "Xen", 18, &value), "a note that is cut off");

    /* Padded to 8: the descriptor of "Xen" (4 + 12) begins at 16, the next note at 24. */
    memset(bytes + 0x800, 0, 0x200);
    put_note(bytes + 0x800, "Xen", 1, 4);
    put_note(bytes + 0x818, "Xen", 18, 8);
    store_le64(bytes + 0x828, 0x55aa);
    store_le64(ph + offsetof(Elf64_Phdr, p_filesz), 48);
    store_le64(ph + offsetof(Elf64_Phdr, p_align), 8);
    boot_elf_parse(&image, &elf, NULL);
    ok(boot_elf_note(&elf, &image, "Xen", 18, &value) && value == 0x55aa, "notes aligned to 8");
}

static void test_segments(void)
{
    struct fixture f;
    struct boot_space space;
    struct boot_elf elf;
    uint64_t base, end;
    struct elf_spec spec = {.paddr = 3 * MIB,
                            .vaddr = 0xc0300000,
                            .entry = 0xc0300123,
                            .text_len = 0x800,
                            .pvh_note = true};
    struct boot_image image = make_elf(bytes, &spec);
    uint8_t *ph = bytes + sizeof(Elf32_Ehdr) + sizeof(Elf32_Phdr);
    Elf32_Phdr second = {.p_type = PT_LOAD,
                         .p_offset = 0x1000,
                         .p_vaddr = 0xc0200000,
                         .p_paddr = 2 * MIB,
                         .p_filesz = 0x100,
                         .p_memsz = 0x200};

    memcpy(ph, &second, sizeof(second));
    is_int(boot_elf_parse(&image, &elf, NULL), 0, "two segments");
    ok(boot_elf_extent(&elf, &base, &end) && base == 2 * MIB && end == 3 * MIB + 0x800, "extent");
    is_int(boot_elf_entry(&elf), 3 * MIB + 0x123, "a virtual entry point");
    elf.entry = 0x5000;
    is_int(boot_elf_entry(&elf), 0x5000, "a physical one");
    ok(boot_elf_contains(&elf, 2 * MIB + 0x1ff) && !boot_elf_contains(&elf, 2 * MIB + 0x200),
       "contains");

    fixture_new(&f, 16 * MIB);
    boot_space_init(&space, &f.params);
    is_int(boot_elf_load(&f.params, &space, &elf, &image, -MIB, &f.err), 0, "load, 1 MiB lower");
    ok(guest_has(&f, MIB, bytes + 0x1000, 0x100), "the second segment");
    ok(guest_is_zero(&f, MIB + 0x100, 0x100), "its bss");
    ok(guest_has(&f, 2 * MIB, bytes + 0x1000, 0x800), "the first segment");

    /* Two that overlap. */
    second.p_paddr = 3 * MIB;
    memcpy(ph, &second, sizeof(second));
    boot_elf_parse(&image, &elf, NULL);
    boot_space_init(&space, &f.params);
    is_int(boot_elf_load(&f.params, &space, &elf, &image, 0, &f.err), -EINVAL, "overlap");
    fixture_free(&f);
}

int main(void)
{
    test_notes();
    test_segments();
    return tap_done();
}

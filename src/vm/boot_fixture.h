/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For the tests of kernel loading: a guest with RAM, images built in memory, files of them, and
 * short reads of guest memory.
 */
#ifndef HULL_VM_BOOT_FIXTURE_H
#define HULL_VM_BOOT_FIXTURE_H

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "vm/boot.h"
#include "vm/layout.h"

struct fixture {
    struct mem *mem;
    struct boot_range map[BOOT_RANGES_MAX];
    struct boot_params params;
    struct boot_result result;
    struct err err;
};

/* Fill what the loaders have to zero, below 1 MiB and some above, with a pattern. */
static inline void fixture_dirty(struct fixture *f)
{
    memset(mem_ptr(f->mem, GPA(0), 4 * MIB, MEM_WRITE), 0xa5, 4 * MIB);
}

static inline void fixture_new(struct fixture *f, uint64_t ram_bytes)
{
    const struct mem_options options = {0};
    uint64_t low = ram_bytes < LAYOUT_RAM_LOW_MAX ? ram_bytes : LAYOUT_RAM_LOW_MAX;

    *f = (struct fixture){0};
    if (mem_new(&f->mem, &options, &f->err) < 0 ||
        mem_add_ram(f->mem, "ram-low", GPA(0), low, &f->err) < 0 ||
        (ram_bytes > low && mem_add_ram(f->mem, "ram-high", GPA(LAYOUT_RAM_HIGH_BASE),
                                        ram_bytes - low, &f->err) < 0)) {
        printf("Bail out! %s\n", f->err.text);
        exit(1);
    }
    f->params = (struct boot_params){.mem = f->mem,
                                     .cmdline = "",
                                     .rsdp_gpa = LAYOUT_BIOS_AREA,
                                     .map = f->map,
                                     .map_count = boot_memory_map(ram_bytes, f->map)};
}

static inline void fixture_free(struct fixture *f)
{
    mem_free(f->mem);
}

static inline uint32_t guest32(struct fixture *f, uint64_t gpa)
{
    uint8_t bytes[4] = {0};
    return mem_read(f->mem, GPA(gpa), bytes, 4) == 0 ? load_le32(bytes) : 0xdeadbeef;
}

static inline uint64_t guest64(struct fixture *f, uint64_t gpa)
{
    uint8_t bytes[8] = {0};
    return mem_read(f->mem, GPA(gpa), bytes, 8) == 0 ? load_le64(bytes) : 0xdeadbeef;
}

/* The string at gpa; NULL outside of RAM. */
static inline const char *guest_text(struct fixture *f, uint64_t gpa)
{
    return mem_ptr(f->mem, GPA(gpa), 1, MEM_READ);
}

/* Does guest memory hold these bytes? */
static inline bool guest_has(struct fixture *f, uint64_t gpa, const void *bytes, uint64_t len)
{
    const void *p = mem_ptr(f->mem, GPA(gpa), len, MEM_READ);
    return p && memcmp(p, bytes, len) == 0;
}

static inline bool guest_is_zero(struct fixture *f, uint64_t gpa, uint64_t len)
{
    const uint8_t *p = mem_ptr(f->mem, GPA(gpa), len, MEM_READ);
    for (uint64_t i = 0; p && i < len; i++)
        if (p[i])
            return false;
    return p != NULL;
}

/* A temporary file with these bytes; path has room for 32 characters. The caller unlinks. */
static inline void write_file(char *path, const void *bytes, size_t len)
{
    memcpy(path, "/tmp/hull-boot-XXXXXX", sizeof("/tmp/hull-boot-XXXXXX"));
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, bytes, len) != (ssize_t)len) {
        printf("Bail out! cannot write %s\n", path);
        exit(1);
    }
    close(fd);
}

/*
 * An ELF executable: headers, a note "Xen" of type 18 (PVH) with the entry point at file offset
 * 0x800, and one segment of text_len bytes at 0x1000 with bss_len bytes behind it.
 */
#define IMAGE_ELF_MAX (16 * KIB)

struct elf_spec {
    uint64_t paddr, vaddr, entry;
    uint32_t text_len, bss_len;
    bool is_64;
    bool pvh_note;    /* the note is in the program headers */
    uint16_t machine; /* 0: EM_X86_64 or EM_386 */
};

static inline void put_elf64(uint8_t *image, const struct elf_spec *spec, unsigned phnum)
{
    Elf64_Ehdr eh = {.e_type = ET_EXEC,
                     .e_machine = spec->machine ? spec->machine : EM_X86_64,
                     .e_version = 1,
                     .e_entry = spec->entry,
                     .e_phoff = sizeof(eh),
                     .e_ehsize = sizeof(eh),
                     .e_phentsize = sizeof(Elf64_Phdr),
                     .e_phnum = (uint16_t)phnum};
    Elf64_Phdr ph[2] = {
        {.p_type = PT_LOAD,
         .p_offset = 0x1000,
         .p_vaddr = spec->vaddr,
         .p_paddr = spec->paddr,
         .p_filesz = spec->text_len,
         .p_memsz = spec->text_len + spec->bss_len},
        {.p_type = PT_NOTE,                 .p_offset = 0x800, .p_filesz = 24, .p_memsz = 24, .p_align = 4},
    };
    memcpy(image, &eh, sizeof(eh));
    memcpy(image + sizeof(eh), ph, sizeof(ph));
}

static inline void put_elf32(uint8_t *image, const struct elf_spec *spec, unsigned phnum)
{
    Elf32_Ehdr eh = {.e_type = ET_EXEC,
                     .e_machine = spec->machine ? spec->machine : EM_386,
                     .e_version = 1,
                     .e_entry = (uint32_t)spec->entry,
                     .e_phoff = sizeof(eh),
                     .e_ehsize = sizeof(eh),
                     .e_phentsize = sizeof(Elf32_Phdr),
                     .e_phnum = (uint16_t)phnum};
    Elf32_Phdr ph[2] = {
        {.p_type = PT_LOAD,
         .p_offset = 0x1000,
         .p_vaddr = (uint32_t)spec->vaddr,
         .p_paddr = (uint32_t)spec->paddr,
         .p_filesz = spec->text_len,
         .p_memsz = spec->text_len + spec->bss_len},
        {.p_type = PT_NOTE,                 .p_offset = 0x800, .p_filesz = 24, .p_memsz = 24, .p_align = 4},
    };
    memcpy(image, &eh, sizeof(eh));
    memcpy(image + sizeof(eh), ph, sizeof(ph));
}

static inline struct boot_image make_elf(uint8_t image[IMAGE_ELF_MAX], const struct elf_spec *spec)
{
    unsigned phnum = spec->pvh_note ? 2 : 1;

    memset(image, 0, IMAGE_ELF_MAX);
    if (spec->is_64)
        put_elf64(image, spec, phnum);
    else
        put_elf32(image, spec, phnum);
    memcpy(image, ELFMAG, SELFMAG);
    image[EI_CLASS] = spec->is_64 ? ELFCLASS64 : ELFCLASS32;
    image[EI_DATA] = ELFDATA2LSB;
    image[EI_VERSION] = EV_CURRENT;
    /* The note: name "Xen", an 8-byte value. */
    store_le32(image + 0x800, 4);
    store_le32(image + 0x804, 8);
    store_le32(image + 0x808, 18);
    memcpy(image + 0x80c, "Xen", 4);
    store_le64(image + 0x810, spec->entry);
    memset(image + 0x1000, 0x90, spec->text_len);
    return (struct boot_image){.bytes = image, .len = 0x1000 + spec->text_len};
}

#endif

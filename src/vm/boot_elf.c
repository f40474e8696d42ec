/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_elf.h"

#include <elf.h>
#include <errno.h>

#include "base/err.h"
#include "base/units.h"

/* One program header, of either class. */
static struct boot_elf_segment read_segment(const uint8_t *bytes, bool is_64)
{
    if (is_64) {
        Elf64_Phdr ph;
        memcpy(&ph, bytes, sizeof(ph));
        return (struct boot_elf_segment){
            .type = ph.p_type,
            .offset = ph.p_offset,
            .vaddr = ph.p_vaddr,
            .paddr = ph.p_paddr,
            .filesz = ph.p_filesz,
            .memsz = ph.p_memsz,
            .align = ph.p_align,
        };
    }
    Elf32_Phdr ph;
    memcpy(&ph, bytes, sizeof(ph));
    return (struct boot_elf_segment){
        .type = ph.p_type,
        .offset = ph.p_offset,
        .vaddr = ph.p_vaddr,
        .paddr = ph.p_paddr,
        .filesz = ph.p_filesz,
        .memsz = ph.p_memsz,
        .align = ph.p_align,
    };
}

static int read_segments(const struct boot_image *image, struct boot_elf *elf, uint64_t phoff,
                         unsigned phentsize, unsigned phnum, struct err *err)
{
    if (phentsize < (elf->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) ||
        !range_fits(phoff, (uint64_t)phnum * phentsize, image->len))
        return err_set(err, EINVAL, "the ELF program headers are not inside the file");
    for (unsigned i = 0; i < phnum; i++) {
        struct boot_elf_segment s =
            read_segment(image->bytes + phoff + (uint64_t)i * phentsize, elf->is_64);
        if (s.type != PT_LOAD && s.type != PT_NOTE)
            continue;
        if (s.type == PT_LOAD && s.memsz == 0)
            continue;
        if (!range_fits(s.offset, s.filesz, image->len))
            return err_set(err, EINVAL, "the ELF file is truncated: segment %u ends behind it", i);
        if (s.type == PT_LOAD && (s.filesz > s.memsz || s.paddr + s.memsz < s.paddr))
            return err_set(err, EINVAL, "the size of ELF segment %u is wrong", i);
        if (elf->count == BOOT_ELF_SEGMENTS_MAX)
            return err_set(err, EINVAL, "the ELF file has more than %d segments",
                           BOOT_ELF_SEGMENTS_MAX);
        elf->segments[elf->count++] = s;
    }
    return 0;
}

int boot_elf_parse(const struct boot_image *image, struct boot_elf *elf, struct err *err)
{
    *elf = (struct boot_elf){0};
    if (image->len < sizeof(Elf32_Ehdr) || memcmp(image->bytes, ELFMAG, SELFMAG) != 0 ||
        image->bytes[EI_DATA] != ELFDATA2LSB)
        return err_set(err, ENOEXEC, "not a little-endian ELF file");
    elf->is_64 = image->bytes[EI_CLASS] == ELFCLASS64;

    uint16_t machine, phentsize, phnum;
    uint64_t phoff;
    if (elf->is_64) {
        Elf64_Ehdr eh;
        if (image->len < sizeof(eh))
            return err_set(err, EINVAL, "the ELF file is truncated in its header");
        memcpy(&eh, image->bytes, sizeof(eh));
        elf->type = eh.e_type;
        elf->entry = eh.e_entry;
        machine = eh.e_machine;
        phoff = eh.e_phoff;
        phentsize = eh.e_phentsize;
        phnum = eh.e_phnum;
    } else {
        Elf32_Ehdr eh;
        memcpy(&eh, image->bytes, sizeof(eh));
        elf->type = eh.e_type;
        elf->entry = eh.e_entry;
        machine = eh.e_machine;
        phoff = eh.e_phoff;
        phentsize = eh.e_phentsize;
        phnum = eh.e_phnum;
    }
    if ((machine != EM_386 && machine != EM_X86_64) ||
        (elf->type != ET_EXEC && elf->type != ET_DYN))
        return err_set(err, ENOEXEC, "not an ELF executable for x86");
    return read_segments(image, elf, phoff, phentsize, phnum, err);
}

bool boot_elf_extent(const struct boot_elf *elf, uint64_t *base, uint64_t *end)
{
    *base = UINT64_MAX;
    *end = 0;
    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type != PT_LOAD)
            continue;
        if (s->paddr < *base)
            *base = s->paddr;
        if (s->paddr + s->memsz > *end)
            *end = s->paddr + s->memsz;
    }
    return *end != 0;
}

int boot_elf_load(const struct boot_params *params, struct boot_space *space,
                  const struct boot_elf *elf, const struct boot_image *image, uint64_t delta,
                  struct err *err)
{
    bool any = false;

    /* All claims first: an image that does not fit leaves the guest's memory alone. */
    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type != PT_LOAD)
            continue;
        int ret = boot_space_claim(space, s->paddr + delta, s->memsz, "kernel", err);
        if (ret < 0)
            return ret;
        any = true;
    }
    if (!any)
        return err_set(err, EINVAL, "the ELF file has no segment to load");

    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type != PT_LOAD)
            continue;
        gpa_t gpa = GPA(s->paddr + delta);
        int ret = 0;
        if (s->filesz)
            ret = mem_write(params->mem, gpa, image->bytes + s->offset, s->filesz);
        if (ret == 0 && s->memsz > s->filesz)
            ret = mem_zero(params->mem, gpa_add(gpa, s->filesz), s->memsz - s->filesz);
        if (ret < 0)
            return err_set(err, ret, "the kernel at 0x%llx is not inside RAM",
                           (unsigned long long)gpa.a);
    }
    return 0;
}

uint64_t boot_elf_entry(const struct boot_elf *elf)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type == PT_LOAD && elf->entry >= s->vaddr && elf->entry - s->vaddr < s->memsz)
            return elf->entry - s->vaddr + s->paddr;
    }
    return elf->entry;
}

bool boot_elf_contains(const struct boot_elf *elf, uint64_t addr)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type == PT_LOAD && addr >= s->paddr && addr - s->paddr < s->memsz)
            return true;
    }
    return false;
}

/* Look through one PT_NOTE. Name and descriptor are padded to 4 bytes, or to 8 where the segment is
 * aligned so (gABI, "Note Section"). */
static bool find_note(const uint8_t *bytes, uint64_t len, uint64_t align, const char *owner,
                      uint32_t type, uint64_t *value)
{
    size_t owner_len = strlen(owner) + 1;

    for (uint64_t at = 0; at <= len && len - at >= sizeof(Elf32_Nhdr);) {
        Elf32_Nhdr nh;
        memcpy(&nh, bytes + at, sizeof(nh));
        uint64_t name = at + sizeof(nh);
        uint64_t desc = align_up(name + nh.n_namesz, align);
        uint64_t next = align_up(desc + nh.n_descsz, align);
        if (!range_fits(name, nh.n_namesz, len) || !range_fits(desc, nh.n_descsz, len))
            return false;
        if (nh.n_type == type && nh.n_namesz == owner_len &&
            memcmp(bytes + name, owner, owner_len) == 0 && (nh.n_descsz == 4 || nh.n_descsz == 8)) {
            *value = load_le(bytes + desc, nh.n_descsz);
            return true;
        }
        at = next;
    }
    return false;
}

bool boot_elf_note(const struct boot_elf *elf, const struct boot_image *image, const char *owner,
                   uint32_t type, uint64_t *value)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct boot_elf_segment *s = &elf->segments[i];
        if (s->type == PT_NOTE && find_note(image->bytes + s->offset, s->filesz,
                                            s->align == 8 ? 8 : 4, owner, type, value))
            return true;
    }
    return false;
}

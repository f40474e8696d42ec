/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF kernels (System V ABI, gABI 4.1): 32- and 64-bit little-endian x86 executables, their program
 * headers checked against the image and put into one form.
 */
#ifndef HULL_VM_BOOT_ELF_H
#define HULL_VM_BOOT_ELF_H

#include <stdbool.h>

#include "vm/boot.h"
#include "vm/boot_space.h"

#define BOOT_ELF_SEGMENTS_MAX 64

struct boot_elf_segment {
    uint32_t type;
    uint64_t offset, vaddr, paddr, filesz, memsz, align;
};

struct boot_elf {
    bool is_64;
    uint16_t type;
    uint64_t entry;
    unsigned count;
    struct boot_elf_segment segments[BOOT_ELF_SEGMENTS_MAX];
};

/*
 * -ENOEXEC: no ELF executable for x86. -EINVAL with err: it is one, but truncated or inconsistent.
 * After success every segment's file range lies inside the image.
 */
int boot_elf_parse(const struct boot_image *image, struct boot_elf *elf, struct err *err);

/* Lowest and highest physical address of the segments to load; false when there is none. */
bool boot_elf_extent(const struct boot_elf *elf, uint64_t *base, uint64_t *end);

/*
 * Load every PT_LOAD at its physical address plus delta (modulo 2^64: it may be negative), the part
 * without file contents zeroed, and claim it.
 */
int boot_elf_load(const struct boot_params *params, struct boot_space *space,
                  const struct boot_elf *elf, const struct boot_image *image, uint64_t delta,
                  struct err *err);

/* The physical address of the entry point: where the segment that holds it virtually is loaded, or
 * else e_entry itself. No delta added. */
uint64_t boot_elf_entry(const struct boot_elf *elf);

/* Is [addr] inside what boot_elf_load() places, without delta? */
bool boot_elf_contains(const struct boot_elf *elf, uint64_t addr);

/* The 4- or 8-byte value of the first note with this owner and type. */
bool boot_elf_note(const struct boot_elf *elf, const struct boot_image *image, const char *owner,
                   uint32_t type, uint64_t *value);

#endif

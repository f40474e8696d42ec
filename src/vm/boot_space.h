/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who gets which part of guest RAM while a kernel is loaded: a short list of claims over the RAM
 * ranges of the memory map. Nothing is written through this; it only decides.
 */
#ifndef HULL_VM_BOOT_SPACE_H
#define HULL_VM_BOOT_SPACE_H

#include "vm/boot.h"

struct err;

/* ELF segments (BOOT_ELF_SEGMENTS_MAX), modules, the information block. */
#define BOOT_CLAIMS_MAX 96

struct boot_claim {
    uint64_t base, end;
    const char *owner; /* static: "kernel", "initrd" */
};

struct boot_space {
    const struct boot_range *map;
    unsigned map_count;
    struct boot_claim claims[BOOT_CLAIMS_MAX];
    unsigned claim_count;
};

void boot_space_init(struct boot_space *space, const struct boot_params *params);

/*
 * Take [base, base + len), len > 0, which must be RAM and free. -ENOSPC: not RAM (err says how much
 * would be needed); -EINVAL: claimed before.
 */
int boot_space_claim(struct boot_space *space, uint64_t base, uint64_t len, const char *owner,
                     struct err *err);

/* Where boot_space_place() looks: within [min, max), the lowest or the highest place. */
struct boot_window {
    uint64_t min, max;
    uint64_t align; /* power of two */
    bool top;
};

/* Find a free place for len > 0 bytes, and take it. -ENOSPC with err. */
int boot_space_place(struct boot_space *space, uint64_t len, const struct boot_window *window,
                     const char *owner, uint64_t *base, struct err *err);

/* The end of the highest claim; 0 when there is none. */
uint64_t boot_space_claims_end(const struct boot_space *space);

/* The end of the RAM that starts at 1 MiB; 0 when there is none. */
uint64_t boot_space_low_end(const struct boot_space *space);

#endif

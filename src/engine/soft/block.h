/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded code, kept: a block is a run of instructions up to the first branch (or what else ends
 * one: ATTR_ENDS_BLOCK), at most BLOCK_INSNS_MAX, in one page. An instruction that crosses into the
 * next page is a block of its own. Blocks are keyed by guest-physical and linear address and
 * decoding mode, so that they survive TLB flushes, and translated code may have its own address in
 * it; a small cache by RIP in front makes the usual lookup a few loads.
 *
 * A block is stale when the generation of one of its pages has moved on: mmu_code_watch().
 * Memory is bounded: when full, all blocks go.
 */
#ifndef HULL_ENGINE_SOFT_BLOCK_H
#define HULL_ENGINE_SOFT_BLOCK_H

#include "engine/soft/cpu.h"
#include "engine/soft/insn.h"

#define BLOCK_INSNS_MAX 48

struct block {
    uint64_t gpa;            /* of the first instruction */
    uint64_t rip;            /* of the first instruction: mapped elsewhere it is another block */
    uint64_t mode;           /* code_bits, vex, careful, translatable, and where CS begins */
    uint16_t count;          /* instructions; the last one stores RIP */
    uint16_t offset;         /* of the first instruction in its page */
    uint32_t generation;     /* of its page, when it was decoded */
    const uint32_t *current; /* and where that is counted */
    /* Of the page that its only instruction crosses into; next_current: NULL where it does not. */
    uint64_t next_gpa;
    const uint32_t *next_current;
    uint32_t next_generation;
    struct block *next;               /* same hash */
    const uint8_t *code;              /* translated: NULL, or its entry. translate.h */
    const uint8_t *saved;             /* another entry, with the flags in memory */
    const uint8_t *indirect;          /* entry of indirect branches: like saved, but checks R10 */
    const uint8_t *link, *link_saved; /* where jumps within the page lead: code, saved; or beyond */
    uint8_t *stale;                   /* where the entry leads when the page has changed, */
    uint8_t *stale_saved;    /* and that with the flags in memory, where it has code of its own */
    struct block *same_page; /* in the translator's list */
    struct block *same_next; /* in that of blocks that cross into a page */
    uint32_t runs;           /* in the first tier; or TRANSLATE_NEVER */
    /* Of all code that it is part of (translate_trace.c): the instruction here behind which no
     * vector or x87 registers are relied upon, and enum vectors, which they are. */
    uint8_t last_vector, vectors;
    uint16_t flags_in; /* arithmetic flags that its code reads before it writes them */
    struct insn insns[];
};

#define TRANSLATE_NEVER UINT32_MAX

/* found: by address, where the cache by RIP did not know it. stale: seen to be so in a search.
 * bytes: of all of them, at the most. */
struct block_stats {
    uint64_t made, found, stale, flushes, bytes;
};

/* Its own module's, but for the translator. */
#define HASH_BITS  16
#define FRONT_BITS 14

struct block_front {
    uint64_t rip, key; /* with soft_cpu.code_tag; soft_cpu.block_key */
    struct block *block;
};

struct block_cache {
    uint8_t *arena;
    size_t bytes, used;
    unsigned insns_max; /* of a block: BLOCK_INSNS_MAX, in tests less */
    struct block *hash[1u << HASH_BITS];
    struct block_front front[1u << FRONT_BITS];
    struct block_stats stats;
    /* A block that cannot be kept: code in device memory. */
    struct block *transient;
    struct translator *translator; /* translate.c; NULL: there is none */
};

int block_cache_init(struct soft_cpu *cpu, struct err *err);
void block_cache_fini(struct soft_cpu *cpu);

/*
 * The block at cpu->rip, made if need be. Raises what fetching and decoding its first instruction
 * raises (#PF, #GP for the CS limit and too long an instruction): an instruction further on that
 * faults ends the block before it. In careful mode blocks have one instruction. Valid until the
 * next call.
 */
struct block *block_find(struct soft_cpu *cpu);

/* The block at a guest-physical address that is mapped at rip, if there is one and it is fresh. */
struct block *block_lookup(struct soft_cpu *cpu, uint64_t gpa, uint64_t rip);

/* A block of one instruction that is in no memory, at cpu->rip: for tests. Nothing finds it.
 * Forgets all others. */
struct block *block_of_insn(struct soft_cpu *cpu, const struct insn *insn);

/* An instruction's place in the memory of all blocks, and back. */
uint32_t block_insn_offset(const struct soft_cpu *cpu, const struct insn *insn);
const struct insn *block_insn_at(const struct soft_cpu *cpu, uint32_t offset);

/* Forget all (tests; a change of the CPU model). */
void block_cache_flush(struct soft_cpu *cpu);
void block_cache_stats(const struct soft_cpu *cpu, struct block_stats *stats);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded code, kept: a block is a run of instructions up to the first branch (or what else ends
 * one: ATTR_ENDS_BLOCK), at most BLOCK_INSNS_MAX, starting in one page and ending in it or with an
 * instruction that crosses into the next. Blocks are keyed by guest-physical address and decoding
 * mode, so that they survive TLB flushes and serve all mappings; a small cache by RIP in front
 * makes the usual lookup a few loads.
 *
 * A block is stale when the generation of its page (or pages) has moved on: mmu_code_watch().
 * Memory is bounded: when full, all blocks go.
 */
#ifndef HULL_ENGINE_SOFT_BLOCK_H
#define HULL_ENGINE_SOFT_BLOCK_H

#include "engine/soft/cpu.h"
#include "engine/soft/insn.h"

#define BLOCK_INSNS_MAX 48

struct block {
    uint64_t gpa;    /* of the first instruction */
    uint64_t rip;    /* where it was last entered: what the front cache compares */
    uint32_t mode;   /* decoding mode: code_bits, vex, careful */
    uint16_t count;  /* instructions; the last one stores RIP */
    uint16_t offset; /* of the first instruction in its page */
    uint32_t generation[2];
    const uint32_t *current[2]; /* of the page, and of the second one or the first again */
    struct block *next;         /* same hash */
    struct insn insns[];
};

struct block_stats {
    uint64_t made, found, stale, flushes;
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

/* Forget all (tests; a change of the CPU model). */
void block_cache_flush(struct soft_cpu *cpu);
void block_cache_stats(const struct soft_cpu *cpu, struct block_stats *stats);

#endif

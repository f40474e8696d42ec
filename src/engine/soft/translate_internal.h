/* SPDX-License-Identifier: Apache-2.0 */
/* What translate.c and translate_block.c share. */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_INTERNAL_H
#define HULL_ENGINE_SOFT_TRANSLATE_INTERNAL_H

#include "engine/soft/translate.h"

#include "engine/soft/translate_emit.h"

/* Code of one block at the most: instructions, their slow paths, exits. */
#define TRANSLATE_BLOCK_BYTES (32u << 10)

#define PAGE_LISTS            4096u

struct translator {
    uint8_t *writable;         /* the code, as it is written */
    const uint8_t *executable; /* and as it is run: no address is both */
    size_t bytes, used;
    struct block
        *pages[PAGE_LISTS]; /* blocks with code, by a hash of their page: block->same_page */
    insn_features host;     /* that the host's processor has: the others are not copied */
    bool bmi2, avx;
    bool count; /* instructions, for the virtual clock */
    struct translate_options options;
    unsigned since_flush; /* blocks */
    bool left;            /* translated code has left for an address: the three below */
    uint64_t left_for;
    uint64_t left_key; /* soft_cpu.block_key then */
    uint8_t *left_at;  /* the displacement of a jump within the page, as it is run; or NULL */
    struct translate_stats stats;
};

static inline const uint8_t *translate_executable(const struct translator *t, const uint8_t *at)
{
    return t->executable + (at - t->writable);
}

/* soft_translated.vectors: what instructions may run on the host's vector registers now. */
enum vectors {
    VECTORS_SSE = 1,
    VECTORS_AVX = 2,
};

/* With an instruction's offset for the slow path: not the instruction, but the vector registers are
 * wanted, of which offset says the instruction that is to be run on them. */
#define SLOW_VECTORS 1u

/* Offsets from %gs: */
#define GS(field)         offsetof(struct soft_cpu, field)
#define GS_GPR(n)         (offsetof(struct soft_cpu, gpr) + 8 * (size_t)(n))
#define GS_CONTEXT(field) (SOFT_CPU_SPAN + offsetof(struct soft_context, field))

/*
 * A block's code, at e->at: sets block->code. False where there is none to be had: its first
 * instruction is one for a handler. translate_block.c
 */
bool translate_emit_block(struct soft_cpu *cpu, struct block *block, struct emit *e);

/* The instructions of a block, as the first tier counts them. */
static inline unsigned translate_count_of(const struct block *block)
{
    return block->count - (block->insns[block->count - 1].op == OP_FALL_THROUGH);
}

/* The block that an instruction is in. */
static inline struct block *translate_block_of(const struct insn *insn)
{
    const struct insn *first = insn - insn->place;
    return (struct block *)(uintptr_t)((const uint8_t *)first - offsetof(struct block, insns));
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What translate.c and translate_block.c share. */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_INTERNAL_H
#define HULL_ENGINE_SOFT_TRANSLATE_INTERNAL_H

#include "engine/soft/translate.h"

#include "engine/soft/translate_emit.h"

/* Code of one block at the most: instructions, their slow paths, exits. */
#define TRANSLATE_BLOCK_BYTES (32u << 10)

#define PAGE_LISTS            4096u
#define CROSSING_LISTS        256u

struct translator {
    uint8_t *writable;         /* the code, as it is written */
    const uint8_t *executable; /* and as it is run: no address is both */
    size_t bytes, used;
    struct block
        *pages[PAGE_LISTS]; /* blocks with code, by a hash of their page: block->same_page */
    struct block *crossing[CROSSING_LISTS]; /* those that cross into a page: block->same_next */
    insn_features host; /* that the host's processor has: the others are not copied */
    bool bmi2, avx, fsgsbase;
    bool count; /* instructions, for the virtual clock */
    struct translate_options options;
    unsigned since_flush; /* blocks */
    struct stub *stubs;   /* of the block that is being translated: translate_job.h */
    bool left;            /* translated code has left for an address: the three below */
    uint64_t left_for;    /* with soft_cpu.code_tag */
    uint64_t left_key;    /* soft_cpu.block_key then */
    uint8_t *left_at;     /* the displacement of a jump within the page, as it is run; or NULL */
    struct translate_stats stats;
};

static inline const uint8_t *translate_executable(const struct translator *t, const uint8_t *at)
{
    return t->executable + (at - t->writable);
}

static inline uint8_t *translate_writable(const struct translator *t, const uint8_t *at)
{
    return t->writable + (at - t->executable);
}

/* soft_translated.vectors: what instructions may run on the host's vector and x87 registers now. */
enum vectors {
    VECTORS_SSE = 1,
    VECTORS_AVX = 2,
    VECTORS_X87 = 4, /* and MMX */
};

/* With an instruction's offset for the slow path, which is a multiple of 8: not the instruction,
 * but registers are wanted, enum vectors; offset says the instruction that is to be run on them. */
#define SLOW_VECTORS 7u

/* soft_translated.indirect: where code is left by another way for an address that is not canonical,
 * so that fetching there is what raises #GP, and not a branch. */
#define NO_INDIRECT UINT32_MAX

/* Offsets from %gs: */
#define GS(field)         offsetof(struct soft_cpu, field)
#define GS_GPR(n)         (offsetof(struct soft_cpu, gpr) + 8 * (size_t)(n))
#define GS_CONTEXT(field) (SOFT_CPU_SPAN + offsetof(struct soft_context, field))

/* What translator.stubs takes. */
size_t translate_stub_bytes(void);

/*
 * A block's code, at e->at: sets block->code. False where it would be none but for handlers, behind
 * which the run loop goes on. translate_block.c
 */
bool translate_emit_block(struct soft_cpu *cpu, struct block *block, struct emit *e);

/* --- x87 and MMX instructions: translate_x87.c --- */

/* The registers that the instruction runs on as it is, enum vectors, or 0: it is for its handler.
 */
unsigned translate_x87_needs(const struct insn *insn);

/* Does it become what the x87 pointers tell of: FIP, FOP, and FDP where it has an operand in
 * memory?
 */
bool translate_x87_is_noted(const struct insn *insn);

/* An instruction of the x87 unit: on registers, or its operand in memory at (%r10). */
void translate_x87_emit(struct emit *e, const struct insn *insn);

/* FLDCW (%r10); *otherwise is the displacement of a jump to where its handler does it, since not
 * all exceptions would be masked. R11 and the host's flags are lost. */
void translate_x87_fldcw(struct emit *e, uint8_t **otherwise);

/* FIP and FOP in soft_cpu.fpu become those of the instruction, which is at rip. R11 is lost, no
 * flag. */
void translate_x87_note(struct emit *e, const struct soft_cpu *cpu, const struct insn *insn,
                        uint64_t rip);

/* FDP becomes R10, an offset in the operand's segment. R11 is lost, no flag. */
void translate_x87_note_operand(struct emit *e, const struct soft_cpu *cpu,
                                const struct insn *insn);

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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second tier: blocks of 64-bit code, of 32-bit code whose segments are flat, and of 16-bit
 * code in segments of 64 KiB, that run often are translated to host code, one pass and no
 * intermediate form, since guest and host have the same instructions.
 *
 *     translate.c        the code cache, entering and leaving it, links, invalidation
 *     translate_block.c  a block's analysis and its code; translate_job.h says what else makes it
 *     translate_class.c  in which way an instruction is translated
 *     translate_emit.h   bytes
 *     translate_x87.c    x87 and MMX instructions
 *
 * In translated code
 *   - the guest's registers are in the host's registers of the same name, RSP too, but for R10 and
 *     R11: these are scratch, and the guest's are in soft_cpu.gpr, at %gs:. Signals must not come
 *     to the thread, which has no host stack then;
 *   - the guest's arithmetic flags are in the host's, or in soft_cpu.translated.flags, or in both.
 *     What may follow decides that statically; a block has entries for either, and that of indirect
 *     branches is of flags in memory;
 *   - of 32-bit code, addresses are cut to 32 bits, and what is encoded otherwise in 64-bit code is
 *     encoded anew (translate_class.c). That CS, DS and SS are flat is part of a block's key; that
 *     ES, FS and GS are is looked at. A context is of 64-bit code or of others, so that no jump
 *     leads from one to the other;
 *   - of 16-bit code, offsets are cut to 16 bits and checked against 64 KiB, and the segment's base
 *     is added; the prefix of the other size is put where it was missing, and the other way round.
 *     Where CS begins is part of the key, and of what indirect branches compare: in the jump table
 *     an address goes with soft_cpu.code_tag;
 *   - soft_cpu.rip is not kept: the code knows it;
 *   - the vector and x87 registers are the guest's where soft_translated.vectors says so;
 *   - an access to memory looks into the TLB of the current context. Where it does not hit, the
 *     instruction is done by its handler (exec.h) as in the first tier, with all registers in
 *     soft_cpu, and so is whatever the translator does not know. Handlers raise by longjmp.
 *
 * Flags that no instruction can see any more, because all of them are written before any is read,
 * need not be right in what an exception or interrupt stores there. With `exact` they are.
 *
 * A page whose code changes (pages.c) is told to the vCPUs that have translated code of it:
 * translate_drop(), at once on the vCPU's own thread, or by SOFT_EVENT_MMU. Entries of dropped code
 * lead back to the run loop, so that whatever still jumps there does no harm.
 *
 * Threads: everything belongs to the vCPU's thread.
 */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_H
#define HULL_ENGINE_SOFT_TRANSLATE_H

#include "engine/soft/block.h"

struct err;

/* Runs of a block in the first tier before it is translated. */
#define TRANSLATE_RUNS 4

struct translate_stats {
    uint64_t blocks;     /* translated */
    uint64_t entered;    /* times that the run loop has entered translated code */
    uint64_t steps;      /* instructions done by their handlers from translated code */
    uint64_t links;      /* jumps patched */
    uint64_t loops;      /* blocks that are done some rounds at a time */
    uint64_t parts;      /* blocks that are the rest of another one's code */
    uint64_t dropped;    /* blocks whose page has changed */
    uint64_t flushes;    /* of the whole code cache */
    uint64_t code_bytes; /* in use, at the most */
};

/* How large a vCPU's code cache is, as the VM's configuration says, within these bounds. */
#define TRANSLATE_CODE_MIN (1ULL << 20)
#define TRANSLATE_CODE_MAX (1ULL << 30)
size_t translate_code_bytes(const struct soft_cpu *cpu);

/* The memory for code. */
int translate_init(struct soft_cpu *cpu, struct err *err);
void translate_fini(struct soft_cpu *cpu);

/*
 * Look at a block that block_find() has just returned, and that has no code: where it has run often
 * enough it is translated (block->code is set), or found not to be worth it (block->runs becomes
 * TRANSLATE_NEVER). False: everything had to be forgotten, the block too.
 */
bool translate_block(struct soft_cpu *cpu, struct block *block);

/* How much, and what for. The modes make code that is slower and looks at itself: for tests. */
struct translate_options {
    bool off;             /* the first tier alone */
    bool exact;           /* flags that no instruction can see are right at exceptions as well */
    bool slow;            /* every access to memory by its handler */
    bool single;          /* blocks of one instruction */
    unsigned runs;        /* 0: TRANSLATE_RUNS */
    unsigned flush_every; /* forget all code after so many blocks; 0: when it is full */
};

void translate_configure(struct soft_cpu *cpu, const struct translate_options *options);

/* For tests: a block of block_of_insn() is translated: false where its instruction is not for the
 * translator. */
bool translate_test_block(struct soft_cpu *cpu, struct block *block);

/* Run translated code from block->code on, and what it goes on to, until an event or code that is
 * not translated. RIP is exact afterwards. Raises. */
void translate_run(struct soft_cpu *cpu, struct block *block);

/* A page's code has changed: its translations are not entered again. gpa: of the page. */
void translate_drop(struct soft_cpu *cpu, uint64_t gpa);

/* All blocks are about to go. */
void translate_flush(struct soft_cpu *cpu);

void translate_stats(const struct soft_cpu *cpu, struct translate_stats *stats);

#endif

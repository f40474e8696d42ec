/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block on its way to code: what the files share that make it.
 *
 *     translate_trace.c   which blocks become code together, and which flags matter
 *     translate_block.c   entries, groups, stubs
 *     translate_flags.c   the guest's flags
 *     translate_memory.c  operands in memory
 *     translate_insn.c    instructions
 *     translate_system.c  system instructions, strings
 *     translate_branch.c  branches
 *     translate_loop.c    blocks that lead to their own start
 */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_JOB_H
#define HULL_ENGINE_SOFT_TRANSLATE_JOB_H

#include "engine/soft/translate_group.h"

#define ARITH ((unsigned)RFLAGS_ARITH)

/* Blocks of a trace, and instructions. */
#define TRACE_PARTS     4u
#define TRACE_INSNS_MAX 32u

/* Instructions of a loop's rounds that are done in a row. */
#define LOOP_INSNS_MAX  48u
#define LOOP_ROUNDS_MAX 8u

/* At most four for an instruction, twice where it is in a group (five in 16-bit code, which has no
 * groups), and again in each of a loop's rounds; and those of the block. */
#define STUBS (8 * BLOCK_INSNS_MAX + 4 * LOOP_INSNS_MAX + 8)

/* Code out of the way: a slow path, or the first aim of a link. */
enum stub_kind {
    STUB_SLOW,
    STUB_LINK,
    STUB_EXIT,
    STUB_UNGROUPED,
};

struct stub {
    uint8_t kind;  /* enum stub_kind */
    uint8_t place; /* of the instruction in the trace */
    bool saved;    /* flags are in memory */
    uint8_t *from; /* displacement of the jump that leads here */
    const uint8_t *resume;
    const struct insn *insn;
    uint8_t wanted; /* of a slow path: registers (enum vectors), not the instruction */
    uint64_t rip;   /* of a link or exit: where it wants to go */
    const struct translate_group *group; /* whose accesses look one by one there */
    bool host_after, saved_after;        /* and where flags must be where that resumes */
    bool vectors_before, x87_before;
    uint8_t look;         /* enum stack_look: that has failed for the page that is known, */
    uint16_t look_limit;  /* how far into a page the access may begin, */
    const uint8_t *found; /* and where it goes on once it is found: emit_stack_lookup() */
    bool host;            /* of a link: flags are in the host's register, else in memory */
    bool plain; /* of a slow path in a loop's rounds: the rest of the round is done outside of them
                 */
};

enum stack_look {
    LOOK_NONE,
    LOOK_READ,
    LOOK_WRITE,
};

struct job {
    struct soft_cpu *cpu;
    struct translator *t;
    struct block *block;
    struct emit *e;
    bool code32; /* of 32 bits or 16, else of 64 */
    bool code16;
    uint64_t start; /* of 16-bit code: of CS */
    uint64_t tag;   /* soft_cpu.code_tag: with an address for the jump table */
    unsigned word;  /* bytes of what a call pushes */
    const struct insn *insns[BLOCK_INSNS_MAX + 1]; /* of the trace: translate_trace.c */
    unsigned count;
    struct block *parts[TRACE_PARTS]; /* the blocks that it is made of; the first is `block` */
    unsigned part_count;
    uint8_t first[TRACE_PARTS];         /* instruction of each */
    bool inverted[BLOCK_INSNS_MAX + 1]; /* a conditional jump: the trace goes on at its target */
    uint8_t uses;                       /* enum vectors: what the instructions want */
    unsigned current;                   /* the instruction that code is being made of */
    uint8_t way[BLOCK_INSNS_MAX + 1];
    uint16_t live[BLOCK_INSNS_MAX + 2]; /* flags that matter before an instruction */
    struct insn_flags flags[BLOCK_INSNS_MAX + 1];
    bool vectors;                 /* the vector registers are known to be the guest's */
    bool x87;                     /* so are the x87 registers */
    bool host_valid, saved_valid; /* where the guest's flags are now */
    int poll;                     /* before which instruction; -1: none */
    struct translate_group groups[BLOCK_INSNS_MAX / 2];
    unsigned group_count;
    uint16_t offset[BLOCK_INSNS_MAX + 1]; /* of an access in its group's stretch */
    const struct translate_group *group;  /* R10 is the host address of its stretch; or NULL */
    unsigned group_base;                  /* or R10_R11 together are it */
    int32_t rsp_behind;                   /* what RSP has still to be moved by, in a group */
    struct translate_loop loop;           /* rounds: 0 where the block is none */
    uint8_t *loop_head;                   /* where each few rounds begin */
    uint8_t *behind[BLOCK_INSNS_MAX + 1]; /* an instruction, outside of those rounds */
    bool by_tlb;                          /* looks are to be in the TLB, whatever the address */
    struct stub pending;                  /* what add_stub() is to know of the jump at .from */
    struct stub *stubs;                   /* STUBS */
    unsigned stub_count;
};

/* --- traces: translate_trace.c --- */

/* Find the blocks and set job->insns, and what is known of each: its way, its flags. */
void find_trace(struct job *job);

/* Does one of the blocks but the first begin with instruction i? Else NULL. */
struct block *part_at(const struct job *job, unsigned i);

static inline bool is_last(const struct job *job, unsigned i)
{
    return i + 1 == job->count;
}

/* --- stubs: translate_block.c --- */

struct stub *add_stub(struct job *job, enum stub_kind kind, uint8_t *from);

/* A jump to the slow path was emitted; it comes back behind the instruction: emit_insn(). */
struct stub *add_slow(struct job *job, uint8_t *from, const struct insn *insn);
uint64_t rip_behind(const struct job *job, const struct insn *insn);

/* The x87 pointers become right as they are before an instruction. Handlers do it themselves. */
void note_x87(struct job *job, unsigned before);

/* The code of an instruction, whose slow paths come back behind it. */
void emit_insn(struct job *job, unsigned i);

/* cmpl $0, %gs:attention */
void emit_attention(struct emit *e);

/* --- flags: translate_flags.c --- */

/* Flags from the host's register to memory; R11 is lost. */
void save_flags(struct job *job);

/* And back; R11 is lost. */
void restore_flags(struct job *job);

/* The host's flags are about to be lost, before an instruction before which `live` matter. */
void give_up_flags(struct job *job, unsigned live);

/* An instruction reads flags, or writes some and leaves others: they must be in the host's. */
void need_flags(struct job *job, unsigned i);

/*
 * Flags that the manuals leave undefined, and handlers leave as they are: with `exact` they stay
 * here too, so that both tiers are the same to the bit (trace.h). Shifts and logical instructions
 * have the host's in their handlers as well.
 */
unsigned kept_flags(const struct job *job, unsigned i);

/* Of flags that the instruction before has left in the host's register, `kept` become those in
 * memory again; there they all are then. R11 is lost. */
void keep_flags(struct job *job, unsigned kept);
void note_flags_written(struct job *job, unsigned i);

/* --- memory: translate_memory.c --- */

void load_guest(struct emit *e, unsigned to, unsigned guest);

/* mov to, from: 32 bits, the upper half becomes zero. */
void emit_mov32(struct emit *e, unsigned to, unsigned from);

/* movzx to, from: of 16 bits */
void emit_mov16(struct emit *e, unsigned to, unsigned from);

/* An address of the stack that is in a register, to R10. */
void emit_stack_top(struct job *job, unsigned reg);

/* The offset of a memory operand in its segment, and `by` more, to R10; R11 is lost. */
void emit_offset(struct job *job, const struct insn *insn, int32_t by);

/*
 * R10, an offset in the segment of the memory operand, becomes the linear address. In 32-bit code
 * DS and SS are flat, or it would not be translated; the others may have a base, and where they
 * have a limit, the handler looks at it. In 16-bit code all have a base, and SS at least 64 KiB.
 */
void emit_segment(struct job *job, const struct insn *insn);

/* R10 is a 16-bit offset: the slow path where so many bytes from there on do not end with 64 KiB.
 */
void emit_check_64k(struct job *job, const struct insn *insn, unsigned bytes);

/* add %gs:base of the segment, %r10d */
void emit_add_base(struct job *job, unsigned seg);

/*
 * R10, a linear address, becomes the host's, or the slow path is taken, by a jump whose
 * displacement is returned. R11 and the host's flags are lost.
 */
uint8_t *emit_lookup(struct job *job, unsigned size, bool write);

/* The same for an address of the stack, which is mostly in the page that the last one was in. The
 * stub of the jump that is returned looks further. Not in 16-bit code. */
uint8_t *emit_stack_lookup(struct job *job, unsigned size, bool write);

/* The base of an operand at (%r10, %r11), of those that take R10 or R11. */
#define R10_R11 0xffu

/* `base` is the host address of an operand, less `offset`. */
struct look {
    unsigned base; /* R10, but for emit_look_for_load() */
    uint8_t *miss; /* displacement of the jump to the slow path */
    bool known;    /* the address is a constant: R10 is that of its page */
    uint16_t offset;
};

/*
 * The look into the TLB for so many bytes from `by` behind the instruction's memory operand on.
 * Where they are is mostly known only when the code runs; an address that is a constant has its
 * entry's place and tag in the code. R11 and the host's flags are lost.
 */
struct look emit_look(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                      bool write);

/*
 * The same for an instruction that does not want R11. Where .base is R10_R11, R10 is the offset in
 * the page and R11 the host address of the page: programs wait for what they load, mostly for the
 * address of their next load, and the processor adds up an operand's registers sooner than an
 * instruction would. `to`: a register that is loaded. Where the address is made of it, as in
 * programs that follow pointers, the look takes four instructions more, and three cycles of
 * sixteen less.
 */
struct look emit_look_for_load(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                               bool write, unsigned to);

/* The same with the host address itself in R10. */
uint8_t *emit_look_to_r10(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                          bool write);

/* lea bytes(base), to, as wide as stack pointers are (R10: 32 bits at least): no flag changes. */
void emit_stack_lea(struct job *job, unsigned to, unsigned base, int32_t bytes);

/* RSP += bytes, for the current instruction: perhaps not before others of its group have been, that
 * do the same, since nobody sees it in between. */
void emit_add_rsp(struct job *job, int32_t bytes);

/* The operand offset(%r10). */
void emit_r10_operand(struct emit *e, unsigned reg, unsigned offset);

/* Where a prefix stands for the other size. */
void emit_prefixes(const struct job *job, const struct insn *insn, const struct layout *l);

/* The instruction with offset(base), of R10, R11 or R10_R11, for its memory operand, and `reg` for
 * its register field. */
void emit_at(const struct job *job, const struct insn *insn, unsigned reg, unsigned base,
             unsigned offset);

/* mov offset(%r10), reg, or back: of as many bits as the code */
void emit_word_r10(struct job *job, unsigned opcode, unsigned reg, unsigned offset);

/* mov $, offset(%r10): of as many bits as the code; of 64, is_imm32() */
void emit_store_imm_r10(struct job *job, uint64_t value, unsigned offset);

/* R10 to be the host address of the word at RSP + by: returns how far behind R10 that is, since a
 * group's stretch may be there already. */
unsigned emit_stack(struct job *job, const struct insn *insn, int by, bool write);

/* --- loops: translate_loop.c --- */

/* Is the block a loop that is better done some rounds at a time? Sets job->loop. */
bool find_loop(struct job *job);

/* The code of those rounds, at the block's entry. Behind it comes that of one round, as of any
 * other block, for whatever these do not do. */
void emit_loop(struct job *job);

/* --- instructions: translate_insn.c --- */

/* The instruction with its memory operand at offset(base), of R10, R11 or, where the instruction
 * has no use of its own for R11, R10_R11. */
void emit_memory_at(struct job *job, const struct insn *insn, unsigned i, unsigned base,
                    unsigned offset);

/* The jump that is taken where the registers, one of enum vectors, do not hold the guest's: its
 * displacement. The host's flags are lost. */
uint8_t *emit_unless_loaded(struct emit *e, uint8_t wanted);

/* The vector registers that the block's vector instructions want. */
uint8_t wanted_vectors(const struct job *job);

void emit_by_way(struct job *job, unsigned i);
void emit_handler(struct job *job, const struct insn *insn);
void need_vectors(struct job *job, const struct insn *insn, unsigned i);
void need_x87(struct job *job, const struct insn *insn, unsigned i);

/* --- system instructions, strings: translate_system.c --- */

void emit_system(struct job *job, const struct insn *insn, unsigned i);
void emit_string(struct job *job, const struct insn *insn, unsigned i);

/* --- branches: translate_branch.c --- */

/* Leave a loop where its condition does not hold; else go on, or to its head. */
void emit_loop_end(struct job *job, bool last);

void emit_branch(struct job *job, unsigned i);

/* Of a relative branch. */
uint64_t target_of(const struct job *job, const struct insn *insn);
bool in_page(const struct job *job, uint64_t rip);
void emit_through_table(struct job *job, uint64_t rip);

#endif

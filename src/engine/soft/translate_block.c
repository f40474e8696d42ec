/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block's code. First each instruction is classed: copied with its operands in the same
 * registers, copied with its memory operand at (%r10) behind a look into the TLB, a branch, or one
 * for its handler. Then, backwards, which flags matter before each. Then the code, forwards:
 *
 *     indirect entry: is R10 the block's address? else leave
 *     saved entry:    the flags are in memory
 *     entry:          instructions ...
 *                     branch: jumps within the page, jumps through the table of the context
 *     slow paths:     one for each access, and each handler
 *     links:          where jumps within the page lead at first
 *     stale:          where the entry leads when the page has changed
 */
#include "engine/soft/translate_group.h"

#include <assert.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/mmu_internal.h"

#define ARITH ((unsigned)RFLAGS_ARITH)

/* At most four for an instruction, twice where it is in a group (five in 16-bit code, which has no
 * groups), and those of the block. */
#define STUBS (8 * BLOCK_INSNS_MAX + 8)

/* Code out of the way: a slow path, or the first aim of a link. */
enum stub_kind {
    STUB_SLOW,
    STUB_LINK,
    STUB_EXIT,
    STUB_UNGROUPED,
};

struct stub {
    uint8_t kind;  /* enum stub_kind */
    bool saved;    /* flags are in memory */
    uint8_t *from; /* displacement of the jump that leads here */
    const uint8_t *resume;
    const struct insn *insn;
    uint8_t wanted; /* of a slow path: registers (enum vectors), not the instruction */
    uint64_t rip;   /* of a link or exit: where it wants to go */
    const struct translate_group *group; /* whose accesses look one by one there */
    bool host_after, saved_after;        /* and where flags must be where that resumes */
    bool vectors_before, x87_before;
    bool host; /* of a link: flags are in the host's register, else in memory */
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
    struct stub stubs[STUBS];
    unsigned stub_count;
};

/* --- flags --- */

static void analyse(struct job *job)
{
    unsigned count = job->block->count;
    job->live[count] = ARITH;
    job->block->last_vector = 0;
    job->block->vectors = 0;
    for (unsigned i = count; i-- > 0;) {
        const struct insn *insn = &job->block->insns[i];
        struct insn_flags f = {0};
        job->way[i] = (uint8_t)translate_way_of(job->t, insn, job->cpu->mode.code_bits);
        if (job->way[i] == WAY_HANDLER)
            f = (struct insn_flags){.read = ARITH};
        else if (insn->op != OP_FALL_THROUGH)
            f = insn_flags(insn, INSN_COUNT_UNKNOWN);
        f.read &= ARITH;
        f.written = (f.written | f.undefined) & ARITH;
        job->flags[i] = f;
        job->live[i] = (uint16_t)((job->live[i + 1] & ~f.written) | f.read);
        if (job->t->options.exact)
            job->live[i] = ARITH;
        unsigned vectors = translate_vectors_of(insn, (enum way)job->way[i]);
        if (vectors && !job->block->last_vector)
            job->block->last_vector = (uint8_t)i;
        job->block->vectors |= (uint8_t)vectors;
    }
    job->block->flags_in = job->live[0];
}

/* The host's flags to AX, as in soft_translated.flags. */
static void emit_flags_to_ax(struct emit *e)
{
    emit8(e, 0x9f); /* lahf */
    emit8(e, 0x0f); /* seto %al */
    emit8(e, 0x90);
    emit8(e, 0xc0);
}

/* Flags from the host's register to memory; R11 is lost. */
static void save_flags(struct job *job)
{
    struct emit *e = job->e;
    emit_mov(e, R11, CPU_RAX);
    emit_flags_to_ax(e);
    emit8(e, 0x66); /* mov %ax, %gs: */
    emit8(e, 0x65);
    emit8(e, 0x89);
    emit_gs_operand(e, CPU_RAX, GS(translated.flags));
    emit_mov(e, CPU_RAX, R11);
    job->saved_valid = true;
}

/* And back; R11 is lost. */
static void restore_flags(struct job *job)
{
    struct emit *e = job->e;
    emit_mov(e, R11, CPU_RAX);
    emit8(e, 0x65); /* movzwl %gs:, %eax */
    emit8(e, 0x0f);
    emit8(e, 0xb7);
    emit_gs_operand(e, CPU_RAX, GS(translated.flags));
    emit8(e, 0x04); /* add $0x7f, %al: overflows where AL is 1 */
    emit8(e, 0x7f);
    emit8(e, 0x9e); /* sahf */
    emit_mov(e, CPU_RAX, R11);
    job->host_valid = true;
}

/* The host's flags are about to be lost, before an instruction before which `live` matter. */
static void give_up_flags(struct job *job, unsigned live)
{
    if (live && !job->saved_valid)
        save_flags(job);
    job->host_valid = false;
}

/* An instruction reads flags, or writes some and leaves others: they must be in the host's. */
static void need_flags(struct job *job, unsigned i)
{
    const struct insn_flags *f = &job->flags[i];
    unsigned need = f->read;
    if (f->written)
        need |= job->live[i + 1] & ~(unsigned)f->written;
    if (need && !job->host_valid)
        restore_flags(job);
}

/*
 * Flags that the manuals leave undefined, and handlers leave as they are: with `exact` they stay
 * here too, so that both tiers are the same to the bit (trace.h). Shifts and logical instructions
 * have the host's in their handlers as well.
 */
static unsigned kept_flags(const struct job *job, unsigned i)
{
    const struct insn *insn = &job->block->insns[i];
    if (!job->t->options.exact || job->way[i] == WAY_HANDLER || insn->op == OP_FALL_THROUGH)
        return 0;
    switch (insn->op) {
    case OP_MUL:
    case OP_IMUL1:
    case OP_IMUL2:
    case OP_IMUL3:
    case OP_DIV:
    case OP_IDIV:
        return insn_flags(insn, INSN_COUNT_UNKNOWN).undefined & ARITH;
    default:
        if ((insn->op >= OP_BT && insn->op <= OP_POPCNT) ||
            (insn->op >= OP_ANDN && insn->op <= OP_BZHI))
            return insn_flags(insn, INSN_COUNT_UNKNOWN).undefined & ARITH;
        return 0;
    }
}

/* Of flags that the instruction before has left in the host's register, `kept` become those in
 * memory again; there they all are then. R11 is lost. */
static void keep_flags(struct job *job, unsigned kept)
{
    struct emit *e = job->e;
    uint16_t mask = (uint16_t)((kept & LAHF_MASK) << 8 | (kept & RFLAGS_OF ? 1u : 0));
    emit_mov(e, R11, CPU_RAX);
    emit_flags_to_ax(e);
    emit8(e, 0x66); /* and $, %ax */
    emit8(e, 0x25);
    emit16(e, (uint16_t)~mask);
    emit8(e, 0x66); /* andw $, %gs: */
    emit8(e, 0x65);
    emit8(e, 0x81);
    emit_gs_operand(e, 4, GS(translated.flags));
    emit16(e, mask);
    emit8(e, 0x66); /* or %ax, %gs: */
    emit8(e, 0x65);
    emit8(e, 0x09);
    emit_gs_operand(e, CPU_RAX, GS(translated.flags));
    emit_mov(e, CPU_RAX, R11);
    job->saved_valid = true;
    job->host_valid = false;
}

static void note_flags_written(struct job *job, unsigned i)
{
    if (job->flags[i].written) {
        job->host_valid = true;
        job->saved_valid = false;
    }
}

/* --- stubs --- */

static struct stub *add_stub(struct job *job, enum stub_kind kind, uint8_t *from)
{
    assert(job->stub_count < STUBS);
    struct stub *stub = &job->stubs[job->stub_count++];
    *stub = (struct stub){
        .kind = (uint8_t)kind, .from = from, .saved = job->saved_valid, .host = job->host_valid};
    return stub;
}

/* A jump to the slow path was emitted; it comes back behind the instruction: emit_insn(). */
static struct stub *add_slow(struct job *job, uint8_t *from, const struct insn *insn)
{
    struct stub *stub = add_stub(job, STUB_SLOW, from);
    stub->insn = insn;
    return stub;
}

/* instructions += n, by a register. */
static void emit_count(struct emit *e, unsigned reg, int n)
{
    emit_gs64(e, OP_LOAD, reg, GS(instructions));
    emit8(e, rex_of(REX_W, reg, reg)); /* lea n(reg), reg */
    emit8(e, 0x8d);
    emit8(e, 0x80u | (reg & 7) << 3 | (reg & 7));
    emit32(e, (uint32_t)n);
    emit_gs64(e, OP_STORE, reg, GS(instructions));
}

static uint64_t rip_behind(const struct job *job, const struct insn *insn)
{
    uint64_t rip = job->block->rip - job->block->offset + insn->next_offset;
    return job->code32 ? (uint32_t)rip : rip;
}

/* The x87 pointers become right as they are before an instruction. Handlers do it themselves. */
static void note_x87(struct job *job, const struct insn *before)
{
    for (unsigned i = before->place; i-- > 0 && job->way[i] != WAY_HANDLER;) {
        const struct insn *insn = &job->block->insns[i];
        if (job->way[i] == WAY_X87 && translate_x87_is_noted(insn)) {
            translate_x87_note(job->e, job->cpu, insn, rip_behind(job, insn) - insn->len);
            return;
        }
    }
}

/* --- memory --- */

static void load_guest(struct emit *e, unsigned to, unsigned guest)
{
    if (is_scratch(guest))
        emit_gs64(e, OP_LOAD, to, GS_GPR(guest));
    else
        emit_mov(e, to, guest);
}

/* mov to, from: 32 bits, the upper half becomes zero. */
static void emit_mov32(struct emit *e, unsigned to, unsigned from)
{
    if (to >= 8 || from >= 8)
        emit8(e, rex_of(0, from, to));
    emit8(e, 0x89);
    emit8(e, 0xc0u | (from & 7) << 3 | (to & 7));
}

/* movzx to, from: of 16 bits */
static void emit_mov16(struct emit *e, unsigned to, unsigned from)
{
    if (to >= 8 || from >= 8)
        emit8(e, rex_of(0, to, from));
    emit8(e, 0x0f);
    emit8(e, 0xb7);
    emit8(e, 0xc0u | (to & 7) << 3 | (from & 7));
}

/* An address of the stack that is in a register, to R10. */
static void emit_stack_top(struct job *job, unsigned reg)
{
    if (job->code16)
        emit_mov16(job->e, R10, reg);
    else if (job->code32)
        emit_mov32(job->e, R10, reg);
    else
        emit_mov(job->e, R10, reg);
}

/* The offset of a memory operand in its segment, and `by` more, to R10; R11 is lost. */
static void emit_offset(struct job *job, const struct insn *insn, int32_t by)
{
    struct emit *e = job->e;
    int32_t disp = insn->disp + by;
    if (insn->rip_relative) {
        uint64_t address =
            job->block->rip - job->block->offset + insn->next_offset + (uint64_t)(int64_t)disp;
        emit_mov_imm(e, R10, address & insn->addr_mask);
    } else if (insn->base == GPR_ZERO && insn->index == GPR_ZERO) {
        emit_mov_imm(e, R10, (uint64_t)(int64_t)disp & insn->addr_mask);
    } else {
        unsigned base = insn->base, index = insn->index;
        bool narrow = insn->addr_bytes < 8, alone = index == GPR_ZERO && base != GPR_ZERO;
        if (is_scratch(base))
            emit_gs64(e, OP_LOAD, base, GS_GPR(base));
        if (is_scratch(index) && index != base)
            emit_gs64(e, OP_LOAD, index, GS_GPR(index));
        if (alone && disp == 0 && !narrow) {
            emit_mov(e, R10, base);
        } else if (alone && disp == 0) {
            emit_mov32(e, R10, base);
        } else {
            /* lea disp(base, index, scale), %r10; of 32 bits where addresses are narrower */
            unsigned x = index == GPR_ZERO ? 4 : index, b = base == GPR_ZERO ? 5 : base;
            bool small = disp == (int8_t)disp && base != GPR_ZERO;
            unsigned mod = base == GPR_ZERO ? 0 : small ? 1 : 2;
            emit8(e, 0x44u | (narrow ? 0 : REX_W) | (x >> 3 & 1) << 1 | (b >> 3 & 1));
            emit8(e, 0x8d);
            emit8(e, mod << 6 | (R10 & 7) << 3 | 4);
            emit8(e, (unsigned)insn->scale << 6 | (x & 7) << 3 | (b & 7));
            if (small)
                emit8(e, (uint8_t)disp);
            else
                emit32(e, (uint32_t)disp);
        }
        if (insn->addr_bytes == 2)
            emit_mov16(e, R10, R10);
    }
}

/* The slow path where the segment is not one of a mask, a byte at %gs:. */
static void emit_segment_check(struct job *job, const struct insn *insn, size_t mask)
{
    struct emit *e = job->e;
    emit8(e, 0x65); /* testb $, %gs: */
    emit8(e, 0xf6);
    emit_gs_operand(e, 0, mask);
    emit8(e, 1u << insn->seg);
    add_slow(job, emit_jcc(e, CONDITION_E), insn);
}

/* add %gs:base of the segment, %r10d */
static void emit_add_base(struct job *job, unsigned seg)
{
    struct emit *e = job->e;
    emit8(e, 0x65);
    emit8(e, rex_of(0, R10, 0));
    emit8(e, OP_ADD_R);
    emit_gs_operand(e, R10, offsetof(struct soft_cpu, seg_base) + 8 * (size_t)seg);
}

/* R10 is a 16-bit offset: the slow path where so many bytes from there on do not end with 64 KiB.
 */
static void emit_check_64k(struct job *job, const struct insn *insn, unsigned bytes)
{
    struct emit *e = job->e;
    if (bytes == 1)
        return;
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xfa}, 3); /* cmp $, %r10d */
    emit32(e, 0x10000 - bytes);
    add_slow(job, emit_jcc(e, CONDITION_A), insn);
}

/*
 * R10, an offset in the segment of the memory operand, becomes the linear address. In 32-bit code
 * DS and SS are flat, or it would not be translated; the others may have a base, and where they
 * have a limit, the handler looks at it. In 16-bit code all have a base, and SS at least 64 KiB.
 */
static void emit_segment(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    bool write = insn->opcode->attr & ATTR_MEM_WRITE, ss = insn->seg == SEG_SS;
    if (!job->code32) {
        if (insn->seg == SEG_FS || insn->seg == SEG_GS)
            emit_gs64(e, OP_ADD_R, R10,
                      offsetof(struct soft_cpu, seg_base) + 8 * (size_t)insn->seg);
        return;
    }
    if (!job->code16 && (ss || insn->seg == SEG_DS))
        return;
    if (job->code16 && insn->addr_bytes == 2) {
        if (!ss)
            emit_segment_check(job, insn, write ? GS(seg_64k_write) : GS(seg_64k));
        emit_check_64k(job, insn, insn->mem_bytes);
    } else {
        emit_segment_check(job, insn, write ? GS(seg_flat_write) : GS(seg_flat));
    }
    emit_add_base(job, insn->seg);
}

/* The linear address of a memory operand to R10; R11 and the host's flags are lost. */
static void emit_address(struct job *job, const struct insn *insn)
{
    emit_offset(job, insn, 0);
    emit_segment(job, insn);
}

/*
 * R10, a linear address, becomes the host's, or the slow path is taken, by a jump whose
 * displacement is returned. R11 and the host's flags are lost.
 */
static uint8_t *emit_lookup(struct job *job, unsigned size, bool write)
{
    struct emit *e = job->e;
    if (job->t->options.slow)
        return emit_jmp(e);
    if (job->t->bmi2) { /* rorx $7, %r10, %r11 */
        emit_bytes(e, (const uint8_t[]){0xc4, 0x43, 0xfb, 0xf0, 0xda, 7}, 6);
    } else {
        emit_mov(e, R11, R10);
        emit_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xeb, 7}, 4); /* shr $7, %r11 */
    }
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and $, %r11d */
    emit32(e, (TLB_ENTRIES - 1) << 5);
    emit_gs_r11(e, OP_SUB_R, R10,
                GS_CONTEXT(tlb) + (write ? offsetof(struct tlb_entry, write_tag)
                                         : offsetof(struct tlb_entry, read_tag)));
    emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfa}, 3); /* cmp $, %r10 */
    emit32(e, 4096 - size);
    uint8_t *miss = emit_jcc(e, CONDITION_A);
    emit_gs_r11(e, OP_ADD_R, R10, GS_CONTEXT(tlb) + offsetof(struct tlb_entry, host));
    return miss;
}

/* lea bytes(base), to, as wide as stack pointers are (R10: 32 bits at least): no flag changes. */
static void emit_stack_lea(struct job *job, unsigned to, unsigned base, int32_t bytes)
{
    struct emit *e = job->e;
    bool small = bytes == (int8_t)bytes;
    if (job->code16 && to == CPU_RSP)
        emit8(e, 0x66);
    if (!job->code32 || to >= 8)
        emit8(e, rex_of(job->code32 ? 0 : REX_W, to, base));
    emit8(e, 0x8d);
    emit8(e, (small ? 0x40u : 0x80u) | (to & 7) << 3 | (base & 7));
    if (base == CPU_RSP)
        emit8(e, 0x24);
    if (small)
        emit8(e, (uint8_t)bytes);
    else
        emit32(e, (uint32_t)bytes);
}

static void emit_add_rsp(struct job *job, int32_t bytes)
{
    emit_stack_lea(job, CPU_RSP, CPU_RSP, bytes);
}

/* --- instructions --- */

/* The operand offset(%r10). */
static void emit_r10_operand(struct emit *e, unsigned reg, unsigned offset)
{
    unsigned mod = offset == 0 ? 0 : offset < 128 ? 1 : 2;
    emit8(e, mod << 6 | (reg & 7) << 3 | (R10 & 7));
    if (mod == 1)
        emit8(e, offset);
    else if (mod == 2)
        emit32(e, offset);
}

/* Where a prefix stands for the other size. */
static void emit_prefixes(const struct job *job, const struct insn *insn, const struct layout *l)
{
    struct emit *e = job->e;
    for (unsigned i = 0; i < l->prefix_count; i++) {
        if (!job->code16 || l->prefixes[i] != 0x66)
            emit8(e, l->prefixes[i]);
    }
    if (job->code16 && insn->op_bytes == 2)
        emit8(e, 0x66);
}

/* The instruction with offset(%r10) for its memory operand, and `reg` for its register field. */
static void emit_at_r10(const struct job *job, const struct insn *insn, unsigned reg,
                        unsigned offset)
{
    struct emit *e = job->e;
    struct layout l;
    translate_lay_out(insn, &l);
    emit_prefixes(job, insn, &l);
    if (l.has_vex) {
        emit8(e, l.vex[0]);
        emit8(e, (l.vex[1] & 0x1fu) | (reg & 8 ? 0 : 0x80u) | 0x40u); /* X unused, B: R10 */
        emit8(e, l.vex[2]);
    } else {
        emit8(e, 0x41u | (l.rex & 8u) | (reg >> 3 & 1) << 2);
    }
    emit_bytes(e, l.opcode, l.opcode_len);
    emit_r10_operand(e, reg, offset);
    emit_bytes(e, insn->bytes + l.tail_at, insn->len - l.tail_at);
}

static void emit_copy(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool r10 = translate_names(insn, R10), r11 = translate_names(insn, R11);
    need_flags(job, i);
    if (r10)
        emit_gs64(e, OP_LOAD, R10, GS_GPR(R10));
    if (r11)
        emit_gs64(e, OP_LOAD, R11, GS_GPR(R11));
    if (job->code16) {
        struct layout l;
        translate_lay_out(insn, &l);
        emit_prefixes(job, insn, &l);
        emit_bytes(e, insn->bytes + l.opcode_at, insn->len - l.opcode_at);
    } else {
        emit_bytes(e, insn->bytes, insn->len);
    }
    if (r10)
        emit_gs64(e, OP_STORE, R10, GS_GPR(R10));
    if (r11)
        emit_gs64(e, OP_STORE, R11, GS_GPR(R11));
    note_flags_written(job, i);
}

static void emit_lea_constant(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    uint64_t value = (uint64_t)(int64_t)insn->disp;
    if (insn->rip_relative)
        value += job->block->rip - job->block->offset + insn->next_offset;
    value &= insn->addr_mask;
    unsigned reg = is_scratch(insn->reg) ? R10 : insn->reg;
    if (insn->op_bytes == 2) { /* movw $, reg */
        if (is_scratch(insn->reg))
            emit_gs64(e, OP_LOAD, R10, GS_GPR(insn->reg));
        emit8(e, 0x66);
        if (reg >= 8)
            emit8(e, 0x41);
        emit8(e, 0xb8u | (reg & 7));
        emit16(e, (uint16_t)value);
    } else {
        emit_mov_imm(e, reg, insn->op_bytes == 4 ? (uint32_t)value : value);
    }
    if (is_scratch(insn->reg))
        emit_gs64(e, OP_STORE, R10, GS_GPR(insn->reg));
}

static void emit_lea_16(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    emit_offset(job, insn, 0);
    if (insn->op_bytes == 2)
        emit8(e, 0x66);
    emit8(e, rex_of(0, R10, insn->reg)); /* mov %r10, reg */
    emit8(e, OP_STORE);
    emit8(e, 0xc0u | (R10 & 7) << 3 | insn->reg);
}

/* xchg low, high: of a register's two lowest bytes; no flag changes. */
static void emit_swap_bytes(struct emit *e, unsigned reg)
{
    emit8(e, 0x86);
    emit8(e, 0xc0u | (reg + 4) << 3 | reg);
}

static bool wants_alignment(const struct insn *insn)
{
    return insn->opcode->attr & ATTR_ALIGNED || insn->op == OP_CMPXCHG16B;
}

static void emit_memory(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    enum insn_form form = insn->opcode->form;
    bool write = insn->opcode->attr & ATTR_MEM_WRITE;
    bool has_reg = form != FORM_RM && form != FORM_V_RM;
    unsigned reg = has_reg ? insn->reg : insn->modrm >> 3 & 7u;
    bool general = insn->op < OP_VEC_BASE || insn->opcode->attr & ATTR_GPR_REG;
    bool scratch = has_reg && general && is_scratch(reg);
    bool high = translate_has_high_byte(insn);
    unsigned offset = 0;
    if (job->group) {
        offset = job->offset[i];
    } else {
        give_up_flags(job, job->live[i]);
        emit_address(job, insn);
        add_slow(job, emit_lookup(job, insn->mem_bytes, write), insn);
        if (wants_alignment(insn)) {
            emit_bytes(e, (const uint8_t[]){0x41, 0xf6, 0xc2}, 3); /* test $, %r10b */
            emit8(e, insn->mem_bytes - 1u);
            add_slow(job, emit_jcc(e, CONDITION_NE), insn);
        }
    }
    need_flags(job, i);
    if (scratch)
        emit_gs64(e, OP_LOAD, R11, GS_GPR(reg));
    if (high)
        emit_swap_bytes(e, reg -= 4);
    emit_at_r10(job, insn, scratch ? R11 : reg, offset);
    if (high)
        emit_swap_bytes(e, reg);
    if (scratch)
        emit_gs64(e, OP_STORE, R11, GS_GPR(reg));
    note_flags_written(job, i);
}

/* INC, DEC: FF /0, /1 */
static void emit_step(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    need_flags(job, i);
    if (insn->op_bytes == 2)
        emit8(e, 0x66);
    emit8(e, 0xff);
    emit8(e, 0xc0u | (insn->op == OP_DEC ? 1u : 0u) << 3 | insn->rm);
    note_flags_written(job, i);
}

/*
 * What is not in the TLB is not prefetched. Programs that prefetch (zstd, for one) are written for
 * it: without, each of their accesses waits for memory.
 */
static void emit_prefetch(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    if (job->group)
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
    emit_address(job, insn);
    uint8_t *miss = emit_lookup(job, 1, false);
    emit_at_r10(job, insn, insn->modrm >> 3 & 7u, 0);
    emit_lead(miss, e->at);
    if (job->group)
        emit_gs64(e, OP_LOAD, R10, GS(translated.target));
}

static void emit_moffs(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool write = insn->op == OP_MOV_MOFFS_STORE;
    unsigned bytes = insn->op_bytes;
    give_up_flags(job, job->live[i]);
    emit_mov_imm(e, R10, insn->imm & insn->addr_mask);
    emit_segment(job, insn);
    add_slow(job, emit_lookup(job, bytes, write), insn);
    if (bytes == 2)
        emit8(e, 0x66);
    emit8(e, rex_of(bytes == 8 ? REX_W : 0, CPU_RAX, R10)); /* mov (%r10), %rax, or back */
    emit8(e, (write ? OP_STORE : OP_LOAD) - (bytes == 1));
    emit8(e, R10 & 7);
}

/* op reg, rm of the operand size. */
static void emit_sized(struct emit *e, unsigned bytes, unsigned opcode, unsigned reg, unsigned rm)
{
    emit8(e, rex_of(bytes == 8 ? REX_W : 0, reg, rm));
    emit8(e, opcode);
    emit8(e, 0xc0u | (reg & 7) << 3 | (rm & 7));
}

/*
 * The divisor in R11, which nobody can change between the check and the division: a quotient that
 * does not fit must not come to the host. DIV: it fits where the dividend's upper half is less than
 * the divisor. IDIV: only the usual case, a dividend of one register's width and a divisor that is
 * not 0 or -1. The flags are undefined behind it.
 */
static void emit_divide(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    unsigned bytes = insn->op_bytes;
    give_up_flags(job, job->live[i]);
    if (insn->is_mem) {
        emit_address(job, insn);
        add_slow(job, emit_lookup(job, insn->mem_bytes, false), insn);
        emit8(e, rex_of(bytes == 8 ? REX_W : 0, R11, R10)); /* mov (%r10), %r11 */
        emit8(e, OP_LOAD);
        emit8(e, (R11 & 7) << 3 | (R10 & 7));
    } else {
        load_guest(e, R11, insn->rm);
    }
    if (insn->op == OP_DIV) {
        emit_sized(e, bytes, 0x39, R11, CPU_RDX); /* cmp %r11, %rdx */
        add_slow(job, emit_jcc(e, CONDITION_AE), insn);
    } else {
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x4d : 0x45, 0x8d, 0x53, 1}, 4);
        /* lea 1(%r11), %r10; cmp $1, %r10 */
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x49 : 0x41, 0x83, 0xfa, 1}, 4);
        add_slow(job, emit_jcc(e, CONDITION_BE), insn);
        emit_sized(e, bytes, OP_STORE, CPU_RAX, R10);
        /* sar $, %r10 */
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x49 : 0x41, 0xc1, 0xfa}, 3);
        emit8(e, 8 * bytes - 1);
        emit_sized(e, bytes, 0x39, R10, CPU_RDX);
        add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    }
    emit_sized(e, bytes, 0xf7, insn->op == OP_DIV ? 6 : 7, R11);
    note_flags_written(job, i);
}

/* Registers, one of enum vectors, must hold the guest's from here on: any slow path keeps it so. */
static void need_registers(struct job *job, const struct insn *insn, unsigned i, uint8_t wanted)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    emit8(e, 0x65); /* testb $, %gs:vectors */
    emit8(e, 0xf6);
    emit_gs_operand(e, 0, GS(translated.vectors));
    emit8(e, wanted);
    struct stub *stub = add_slow(job, emit_jcc(e, CONDITION_E), insn);
    stub->wanted = wanted;
    stub->resume = e->at;
}

static void need_vectors(struct job *job, const struct insn *insn, unsigned i)
{
    if (!job->vectors)
        need_registers(job, insn, i, job->block->vectors & VECTORS_AVX ? VECTORS_AVX : VECTORS_SSE);
    job->vectors = true;
}

static void need_x87(struct job *job, const struct insn *insn, unsigned i)
{
    if (!job->x87)
        need_registers(job, insn, i, VECTORS_X87);
    job->x87 = true;
}

static void emit_vector(struct job *job, const struct insn *insn, unsigned i)
{
    need_vectors(job, insn, i);
    if (insn->is_mem)
        emit_memory(job, insn, i);
    else
        emit_copy(job, insn, i);
}

static void emit_x87_memory(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    emit_address(job, insn);
    add_slow(job, emit_lookup(job, insn->mem_bytes, insn->opcode->attr & ATTR_MEM_WRITE), insn);
    if (insn->opcode_byte == 0xd9 && (insn->modrm >> 3 & 7) == 5) {
        uint8_t *unmasks;
        translate_x87_fldcw(e, &unmasks);
        add_slow(job, unmasks, insn);
    } else {
        translate_x87_emit(e, insn);
    }
    if (translate_x87_is_noted(insn)) {
        emit_offset(job, insn, 0);
        translate_x87_note_operand(e, job->cpu, insn);
    }
}

static void emit_x87(struct job *job, const struct insn *insn, unsigned i)
{
    need_x87(job, insn, i);
    if (insn->opcode->attr & ATTR_MMX && insn->opcode->attr & ATTR_SSE)
        need_vectors(job, insn, i);
    if (!(insn->opcode->attr & ATTR_MMX) && insn->is_mem) {
        emit_x87_memory(job, insn, i);
    } else if (insn->is_mem) {
        emit_memory(job, insn, i);
    } else if (insn->opcode->attr & ATTR_MMX) {
        emit_copy(job, insn, i);
    } else {
        need_flags(job, i);
        translate_x87_emit(job->e, insn);
        note_flags_written(job, i);
    }
}

/* mov offset(%r10), reg, or back: of as many bits as the code */
static void emit_word_r10(struct job *job, unsigned opcode, unsigned reg, unsigned offset)
{
    struct emit *e = job->e;
    if (job->code16)
        emit8(e, 0x66);
    emit8(e, rex_of(job->code32 ? 0 : REX_W, reg, R10));
    emit8(e, opcode);
    emit_r10_operand(e, reg, offset);
}

/* R10 to be the host address of the word at RSP + by: returns how far behind R10 that is, since a
 * group's stretch may be there already. */
static unsigned emit_stack(struct job *job, const struct insn *insn, int by, bool write)
{
    if (job->group)
        return job->offset[insn->place];
    if (by)
        emit_stack_lea(job, R10, CPU_RSP, by);
    else
        emit_stack_top(job, CPU_RSP);
    if (job->code16) {
        if (by)
            emit_mov16(job->e, R10, R10);
        emit_check_64k(job, insn, job->word);
        emit_add_base(job, SEG_SS);
    }
    add_slow(job, emit_lookup(job, job->word, write), insn);
    return 0;
}

static void emit_push(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool copy = insn->op != OP_PUSH_IMM && insn->is_mem;
    unsigned reg = copy || is_scratch(insn->rm) ? R11 : insn->rm;
    if (!job->group)
        give_up_flags(job, job->live[i]);
    if (copy) {
        emit_address(job, insn);
        add_slow(job, emit_lookup(job, job->word, false), insn);
        emit_word_r10(job, OP_LOAD, R10, 0);
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
    }
    unsigned offset = emit_stack(job, insn, -(int)job->word, true);
    if (insn->op == OP_PUSH_IMM) { /* mov $, offset(%r10) */
        if (job->code16)
            emit8(e, 0x66);
        emit8(e, rex_of(job->code32 ? 0 : REX_W, 0, R10));
        emit8(e, 0xc7);
        emit_r10_operand(e, 0, offset);
        if (job->code16)
            emit16(e, (uint16_t)insn->imm);
        else
            emit32(e, (uint32_t)insn->imm);
    } else {
        if (reg == R11)
            emit_gs64(e, OP_LOAD, R11, copy ? GS(translated.target) : GS_GPR(insn->rm));
        emit_word_r10(job, OP_STORE, reg, offset);
    }
    emit_add_rsp(job, -(int32_t)job->word);
}

static void emit_pop(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    unsigned reg = is_scratch(insn->rm) ? R11 : insn->rm;
    if (!job->group)
        give_up_flags(job, job->live[i]);
    emit_word_r10(job, OP_LOAD, reg, emit_stack(job, insn, 0, false));
    if (is_scratch(insn->rm))
        emit_gs64(e, OP_STORE, R11, GS_GPR(insn->rm));
    emit_add_rsp(job, (int32_t)job->word);
}

static void emit_leave(struct job *job, const struct insn *insn, unsigned i)
{
    give_up_flags(job, job->live[i]);
    emit_stack_top(job, CPU_RBP);
    add_slow(job, emit_lookup(job, job->word, false), insn);
    emit_stack_lea(job, CPU_RSP, CPU_RBP, (int32_t)job->word);
    emit_word_r10(job, OP_LOAD, CPU_RBP, 0);
}

static void emit_handler(struct job *job, const struct insn *insn)
{
    add_slow(job, emit_jmp(job->e), insn);
    job->host_valid = job->saved_valid = true;
}

/* --- branches --- */

/* 16-bit code that runs into the end of its segment is for the run loop. */
static bool is_beyond_64k(const struct job *job, uint64_t rip)
{
    return job->code16 && rip > UINT16_MAX;
}

static bool in_page(const struct job *job, uint64_t rip)
{
    return ((rip + job->start) ^ (job->block->rip + job->start)) >> 12 == 0 &&
           !is_beyond_64k(job, rip);
}

/* Of a relative branch. */
static uint64_t target_of(const struct job *job, const struct insn *insn)
{
    uint64_t rip = rip_behind(job, insn) + insn->imm;
    return job->code16 ? (uint16_t)rip : job->code32 ? (uint32_t)rip : rip;
}

/* Does the code at rip, in this page, do without the flags that it is entered with? */
static bool flags_dead_at(const struct job *job, uint64_t rip)
{
    const struct block *b = block_lookup(job->cpu, job->block->gpa + (rip - job->block->rip), rip);
    return b && b->code && b->flags_in == 0 && !job->t->options.exact;
}

/* Flags must be in memory, whatever follows. */
static void flags_to_memory(struct job *job)
{
    if (!job->saved_valid)
        save_flags(job);
}

static void emit_through_table(struct job *job, uint64_t rip)
{
    struct emit *e = job->e;
    flags_to_memory(job);
    if (is_beyond_64k(job, rip)) {
        emit_mov_imm(e, R10, rip);
        emit_jmp_gs(e, GS(translated.exit_saved));
        return;
    }
    emit_mov_imm(e, R10, rip | job->tag);
    emit_jmp_gs(e, GS_CONTEXT(jumps) + 8 * (size_t)(uint16_t)rip);
}

/* Go on at a constant address. */
static void emit_goto(struct job *job, uint64_t rip)
{
    if (!in_page(job, rip)) {
        emit_through_table(job, rip);
        return;
    }
    add_stub(job, STUB_LINK, emit_jmp(job->e))->rip = rip;
}

static void emit_jump_if(struct job *job, const struct insn *insn)
{
    uint64_t next = rip_behind(job, insn), target = target_of(job, insn);
    if (!job->host_valid)
        restore_flags(job);
    uint8_t *taken = emit_jcc(job->e, insn->opcode_byte & 15u);
    bool saved = job->saved_valid;
    emit_goto(job, next);
    job->saved_valid = saved;
    if (in_page(job, target)) {
        add_stub(job, STUB_LINK, taken)->rip = target;
    } else {
        emit_lead(taken, job->e->at);
        emit_through_table(job, target);
    }
}

static int8_t *emit_jrcxz(struct emit *e)
{
    emit8(e, 0xe3);
    emit8(e, 0);
    return (int8_t *)e->at - 1;
}

/* LOOP, JCXZ: no flag changes. Of CX the register is made: R11 is RCX meanwhile. */
static void emit_loop(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    bool loop = insn->op == OP_LOOP, narrow = insn->addr_bytes == 2;
    uint64_t next = rip_behind(job, insn), target = target_of(job, insn);
    if (loop) { /* lea -1(%rcx), %ecx */
        if (narrow)
            emit8(e, 0x66);
        emit_bytes(e, (const uint8_t[]){0x8d, 0x49, 0xff}, 3);
    }
    if (narrow) {
        emit_mov(e, R11, CPU_RCX);
        emit_mov16(e, CPU_RCX, CPU_RCX);
    } else {
        emit8(e, 0x67);
    }
    int8_t *zero = emit_jrcxz(e);
    bool saved = job->saved_valid;
    if (narrow)
        emit_mov(e, CPU_RCX, R11);
    emit_goto(job, loop ? target : next);
    *zero = (int8_t)((int8_t *)e->at - zero - 1);
    job->saved_valid = saved;
    if (narrow)
        emit_mov(e, CPU_RCX, R11);
    emit_goto(job, loop ? next : target);
}

/* Go on at R10. Flags are in memory. */
static void emit_indirect(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    if (job->tag) {
        emit_mov_imm(e, R11, job->tag);
        emit_rr64(e, 0x09, R11, R10); /* or %r11, %r10 */
    }
    emit8(e, 0x65); /* movl $, %gs:indirect */
    emit8(e, 0xc7);
    emit_gs_operand(e, 0, GS(translated.indirect));
    emit32(e, block_insn_offset(job->cpu, insn));
    emit_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0xda}, 4);       /* movzwl %r10w, %r11d */
    emit_bytes(e, (const uint8_t[]){0x65, 0x42, 0xff, 0x24, 0xdd}, 5); /* jmp *%gs:(,%r11,8) */
    emit32(e, (uint32_t)GS_CONTEXT(jumps));
}

/* The word at offset(%r10) to R10, the upper bits zero. */
static void emit_load_target(struct job *job, unsigned offset)
{
    if (!job->code16) {
        emit_word_r10(job, OP_LOAD, R10, offset);
        return;
    }
    emit_bytes(job->e, (const uint8_t[]){0x45, 0x0f, 0xb7}, 3); /* movzwl offset(%r10), %r10d */
    emit_r10_operand(job->e, R10, offset);
}

static void emit_ret(struct job *job, const struct insn *insn)
{
    flags_to_memory(job);
    emit_load_target(job, emit_stack(job, insn, 0, false));
    emit_add_rsp(job, (int32_t)job->word + (int32_t)(insn->imm & 0xffff));
    emit_indirect(job, insn);
}

static void emit_target_register(struct job *job, unsigned reg)
{
    if (job->code16)
        emit_mov16(job->e, R10, reg);
    else if (job->code32)
        emit_mov32(job->e, R10, reg);
    else
        load_guest(job->e, R10, reg);
}

/* The target of an indirect branch to R10. Flags are in memory. */
static void emit_target(struct job *job, const struct insn *insn)
{
    if (!insn->is_mem) {
        emit_target_register(job, insn->rm);
        return;
    }
    emit_address(job, insn);
    add_slow(job, emit_lookup(job, job->word, false), insn);
    emit_load_target(job, 0);
}

static void emit_jmp_ind(struct job *job, const struct insn *insn)
{
    flags_to_memory(job);
    emit_target(job, insn);
    emit_indirect(job, insn);
}

/* The return address to the stack. Flags are in memory; R10 and R11 are lost. */
static void emit_push_return(struct job *job, const struct insn *insn)
{
    unsigned offset = emit_stack(job, insn, -(int)job->word, true);
    emit_mov_imm(job->e, R11, rip_behind(job, insn));
    emit_word_r10(job, OP_STORE, R11, offset);
    emit_add_rsp(job, -(int32_t)job->word);
}

static void emit_call(struct job *job, const struct insn *insn, unsigned i)
{
    uint64_t target = target_of(job, insn);
    bool dead = in_page(job, target) && flags_dead_at(job, target);
    if (!job->group)
        give_up_flags(job, dead ? 0 : job->live[i]);
    emit_push_return(job, insn);
    emit_goto(job, target);
}

static void emit_call_ind(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    flags_to_memory(job);
    if (insn->is_mem) {
        emit_target(job, insn);
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
        emit_push_return(job, insn);
        emit_gs64(e, OP_LOAD, R10, GS(translated.target));
    } else {
        emit_push_return(job, insn);
        emit_target_register(job, insn->rm);
    }
    emit_indirect(job, insn);
}

/* --- events --- */

static bool needs_poll(const struct job *job)
{
    const struct insn *last = &job->block->insns[job->block->count - 1];
    uint64_t next = rip_behind(job, last), target = target_of(job, last);
    switch (job->way[job->block->count - 1]) {
    case WAY_JMP:
    case WAY_CALL:
        return target < next || !in_page(job, target);
    case WAY_JCC:
    case WAY_LOOP:
        return target < next || !in_page(job, target) || !in_page(job, next);
    case WAY_END:
        return !in_page(job, next);
    case WAY_HANDLER:
        return false;
    default:
        return true;
    }
}

/* Before which instruction: the last one where no flag is lost by it. */
static unsigned poll_place(const struct job *job)
{
    unsigned last = job->block->count - 1;
    if (job->way[last] != WAY_JCC && job->way[last] != WAY_LOOP && job->way[last] != WAY_END &&
        job->way[last] != WAY_JMP)
        return last; /* flags go to memory there anyway */
    for (unsigned i = last + 1; i-- > 0;) {
        if (job->live[i] == 0)
            return i;
    }
    return 0;
}

/* cmpl $0, %gs:attention */
static void emit_attention(struct emit *e)
{
    emit8(e, 0x65);
    emit8(e, 0x83);
    emit_gs_operand(e, 7, GS(translated.attention));
    emit8(e, 0);
}

static void emit_poll(struct job *job, unsigned i)
{
    struct emit *e = job->e;
    const struct insn *insn = &job->block->insns[i];
    give_up_flags(job, job->live[i]);
    emit_attention(e);
    struct stub *stub = add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE));
    stub->insn = insn;
    stub->rip = rip_behind(job, insn) - insn->len;
}

/*
 * With a virtual clock: leave where a timer may be due or an event is pending, as the run loop
 * looks before each block, so that interrupts come at the same instruction whether code is
 * translated or not; count the block.
 */
static void emit_clock(struct job *job)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[0]);
    emit_gs64(e, OP_LOAD, R10, GS(instructions));
    emit_gs64(e, 0x3b, R10, GS(clock_check)); /* cmp %gs:, %r10 */
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_AE))->rip = job->block->rip;
    emit_attention(e);
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE))->rip = job->block->rip;
    emit_count(e, R10, (int)translate_count_of(job->block));
}

/* --- the block --- */

static bool is_last(const struct job *job, unsigned i)
{
    return i + 1 == job->block->count;
}

static void emit_by_way(struct job *job, unsigned i)
{
    const struct insn *insn = &job->block->insns[i];
    if (is_last(job, i) && job->way[i] != WAY_HANDLER)
        note_x87(job, insn);
    switch ((enum way)job->way[i]) {
    case WAY_HANDLER:
        emit_handler(job, insn);
        break;
    case WAY_COPY:
        emit_copy(job, insn, i);
        break;
    case WAY_LEA:
        emit_lea_constant(job, insn);
        break;
    case WAY_LEA_16:
        emit_lea_16(job, insn);
        break;
    case WAY_STEP:
        emit_step(job, insn, i);
        break;
    case WAY_NOTHING:
        break;
    case WAY_PREFETCH:
        emit_prefetch(job, insn, i);
        break;
    case WAY_MEMORY:
        emit_memory(job, insn, i);
        break;
    case WAY_MOFFS:
        emit_moffs(job, insn, i);
        break;
    case WAY_DIVIDE:
        emit_divide(job, insn, i);
        break;
    case WAY_VECTOR:
        emit_vector(job, insn, i);
        break;
    case WAY_X87:
        emit_x87(job, insn, i);
        break;
    case WAY_PUSH:
        emit_push(job, insn, i);
        break;
    case WAY_POP:
        emit_pop(job, insn, i);
        break;
    case WAY_LEAVE:
        emit_leave(job, insn, i);
        break;
    case WAY_JMP:
        emit_goto(job, target_of(job, insn));
        break;
    case WAY_JCC:
        emit_jump_if(job, insn);
        break;
    case WAY_LOOP:
        emit_loop(job, insn);
        break;
    case WAY_CALL:
        emit_call(job, insn, i);
        break;
    case WAY_RET:
        emit_ret(job, insn);
        break;
    case WAY_JMP_IND:
        emit_jmp_ind(job, insn);
        break;
    case WAY_CALL_IND:
        emit_call_ind(job, insn);
        break;
    case WAY_END:
        emit_goto(job, rip_behind(job, insn));
        break;
    }
}

static void emit_insn(struct job *job, unsigned i)
{
    unsigned first = job->stub_count, kept = kept_flags(job, i);
    if (kept && !job->saved_valid)
        save_flags(job);
    emit_by_way(job, i);
    if (kept)
        keep_flags(job, kept);
    for (struct stub *stub = job->stubs + first; stub < job->stubs + job->stub_count; stub++) {
        if (!stub->resume)
            stub->resume = job->e->at; /* a branch's does not come back */
    }
}

/* --- groups --- */

/* Accesses that must be aligned are looked at one by one where one of them is not: the usual 16
 * bytes need one test for all that are as far from a multiple. */
static void emit_alignment(struct job *job, const struct translate_group *g)
{
    struct emit *e = job->e;
    unsigned checked = 0; /* bit n: that the stretch's start is n bytes behind a multiple of 16 */
    for (unsigned i = g->first; i <= g->last; i++) {
        const struct insn *insn = &job->block->insns[i];
        if (!insn->is_mem || !wants_alignment(insn) || job->way[i] == WAY_LEA)
            continue;
        unsigned mask = insn->mem_bytes - 1u, offset = job->offset[i] & mask;
        if (mask == 15 && checked >> offset & 1)
            continue;
        if (mask == 15)
            checked |= 1u << offset;
        if (offset) { /* lea offset(%r10), %r11 */
            emit_bytes(e, (const uint8_t[]){0x4d, 0x8d, 0x5a}, 3);
            emit8(e, offset);
        }
        emit_bytes(e, (const uint8_t[]){0x41, 0xf6, offset ? 0xc3 : 0xc2}, 3); /* test $, %r11b */
        emit8(e, mask);
        struct stub *stub = add_stub(job, STUB_UNGROUPED, emit_jcc(e, CONDITION_NE));
        stub->group = g;
        stub->vectors_before = job->vectors;
        stub->x87_before = job->x87;
    }
}

/* The look into the TLB for a whole group. */
static void emit_group_begin(struct job *job, const struct translate_group *g)
{
    const struct insn *insn = &job->block->insns[g->first];
    if (g->vectors & VECTORS_X87)
        need_x87(job, insn, g->first);
    if (g->vectors & (VECTORS_SSE | VECTORS_AVX))
        need_vectors(job, insn, g->first);
    give_up_flags(job, job->live[g->first]);
    switch ((enum way)job->way[g->first]) {
    case WAY_PUSH:
        emit_stack_lea(job, R10, CPU_RSP, g->before - (int)job->word);
        break;
    case WAY_POP:
        emit_stack_lea(job, R10, CPU_RSP, g->before);
        break;
    default:
        emit_offset(job, insn, g->before);
        emit_segment(job, insn);
        break;
    }
    struct stub *stub = add_stub(job, STUB_UNGROUPED, emit_lookup(job, g->bytes, g->write));
    stub->group = g;
    stub->vectors_before = job->vectors;
    stub->x87_before = job->x87;
    emit_alignment(job, g);
    job->group = g;
}

static void emit_one(struct job *job, unsigned i)
{
    if ((int)i == job->poll)
        emit_poll(job, i);
    emit_insn(job, i);
}

/* Where the accesses of a group can look one by one, and then go on behind it. */
static void emit_ungrouped(struct job *job, const struct stub *stub)
{
    const struct translate_group *g = stub->group;
    struct emit *e = job->e;
    job->host_valid = false;
    job->saved_valid = stub->saved;
    job->vectors = stub->vectors_before;
    job->x87 = stub->x87_before;
    for (unsigned i = g->first; i <= g->last; i++)
        emit_one(job, i);
    if (is_last(job, g->last))
        return;
    if (job->live[g->last + 1]) {
        if (stub->host_after && !job->host_valid)
            restore_flags(job);
        if (stub->saved_after && !job->saved_valid)
            save_flags(job);
    }
    emit_lead(emit_jmp(e), stub->resume);
}

/* A group has ended: its stubs learn what comes behind it. */
static void emit_group_end(struct job *job)
{
    for (unsigned i = 0; i < job->stub_count; i++) {
        struct stub *stub = &job->stubs[i];
        if (stub->group != job->group)
            continue;
        stub->resume = job->e->at;
        stub->host_after = job->host_valid;
        stub->saved_after = job->saved_valid;
    }
    job->group = NULL;
}

static void emit_insns(struct job *job)
{
    const struct translate_group *next = job->groups, *end = next + job->group_count;
    for (unsigned i = 0; i < job->block->count; i++) {
        if (next < end && i == next->first)
            emit_group_begin(job, next);
        emit_one(job, i);
        if (next < end && i == next->last) {
            emit_group_end(job);
            next++;
        }
    }
}

/*
 * Are the flags that the block is entered with, and that matter, first of all to be given up? Then
 * they had better be in memory.
 */
static bool wants_flags_saved(const struct job *job)
{
    if (job->live[0] && job->t->count) /* emit_clock() */
        return true;
    for (unsigned i = 0; i < job->block->count && job->live[i]; i++) {
        const struct insn *insn = &job->block->insns[i];
        switch ((enum way)job->way[i]) {
        case WAY_NOTHING:
        case WAY_LEA:
        case WAY_LEA_16:
            break;
        case WAY_COPY:
        case WAY_STEP:
            if (job->flags[i].read || job->flags[i].written)
                return false;
            break;
        case WAY_VECTOR: /* it looks where its registers are */
        case WAY_X87:
            return true;
        case WAY_JCC:
        case WAY_LOOP:
        case WAY_JMP:
        case WAY_END:
            return (int)i == job->poll;
        default:
            return insn->op != OP_FALL_THROUGH;
        }
        if ((int)i == job->poll)
            return true;
    }
    return false;
}

/*
 * The three entries; of the indirect one the flags are in memory, as of the saved one. Where the
 * block wants them there, the entry with flags in the host's register saves them, and the others
 * jump behind that.
 */
static void emit_entries(struct job *job)
{
    struct emit *e = job->e;
    struct block *block = job->block;
    bool keep = wants_flags_saved(job);
    uint8_t *behind = NULL;
    job->host_valid = false;
    job->saved_valid = true;
    block->indirect = translate_executable(job->t, e->at);
    emit_mov_imm(e, R11, block->rip | job->tag);
    emit_bytes(e, (const uint8_t[]){0x4d, 0x39, 0xda}, 3); /* cmp %r11, %r10 */
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE));
    block->saved = translate_executable(job->t, e->at);
    if (keep)
        behind = emit_jmp(e);
    else if (job->live[0])
        restore_flags(job);
    block->code = translate_executable(job->t, e->at);
    if (keep) {
        save_flags(job);
        emit_lead(behind, e->at);
    }
    job->host_valid = !keep;
    job->saved_valid = keep;
}

/*
 * Where jumps within the page lead. To an instruction that crosses into the next page they go
 * through the table, which forgets it when something else is mapped there.
 */
static void emit_link_entries(struct job *job)
{
    struct emit *e = job->e;
    struct block *block = job->block;
    block->link = block->code;
    block->link_saved = block->saved;
    if (!block->next_current)
        return;
    block->link = translate_executable(job->t, e->at);
    save_flags(job);
    block->link_saved = translate_executable(job->t, e->at);
    emit_through_table(job, block->rip);
}

static void emit_stub(struct job *job, struct stub *stub)
{
    struct emit *e = job->e;
    if (stub->from)
        emit_lead(stub->from, e->at);
    switch ((enum stub_kind)stub->kind) {
    case STUB_SLOW:
        note_x87(job, stub->insn);
        emit_mov_imm(e, R10, block_insn_offset(job->cpu, stub->insn) | stub->wanted);
        /* lea resume(%rip), %r11 */
        emit8(e, 0x4c);
        emit8(e, 0x8d);
        emit8(e, 0x1d);
        emit32(e, 0);
        emit_lead(e->at - 4, stub->resume);
        emit_jmp_gs(e, stub->saved ? GS(translated.slow_saved) : GS(translated.slow_host));
        break;
    case STUB_LINK:
        emit_mov_imm(e, R10, stub->rip);
        emit8(e, 0x4c); /* lea displacement(%rip), %r11 */
        emit8(e, 0x8d);
        emit8(e, 0x1d);
        emit32(e, 0);
        emit_lead(e->at - 4, stub->from);
        emit_jmp_gs(e, stub->host ? GS(translated.exit_link) : GS(translated.exit_link_saved));
        break;
    case STUB_EXIT:
        if (stub->insn)
            note_x87(job, stub->insn);
        emit_mov_imm(e, R10, stub->rip);
        emit_jmp_gs(e, stub->saved ? GS(translated.exit_saved) : GS(translated.exit_host));
        break;
    case STUB_UNGROUPED:
        emit_ungrouped(job, stub);
        break;
    }
}

/* Is anything done without a handler? */
static bool is_worth(const struct job *job)
{
    for (unsigned i = 0; i < job->block->count; i++) {
        if (job->way[i] != WAY_HANDLER && job->way[i] != WAY_END)
            return true;
    }
    return false;
}

bool translate_emit_block(struct soft_cpu *cpu, struct block *block, struct emit *e)
{
    bool code32 = !soft_code64(cpu), code16 = cpu->mode.code_bits == 16;
    struct job job = {.cpu = cpu,
                      .t = cpu->blocks->translator,
                      .block = block,
                      .e = e,
                      .code32 = code32,
                      .code16 = code16,
                      .start = code16 ? cpu->seg_base[SEG_CS] : 0,
                      .tag = cpu->code_tag,
                      .word = cpu->mode.code_bits / 8u};
    analyse(&job);
    if (!is_worth(&job))
        return false;
    /* With a virtual clock each block looks at its start: emit_clock(). */
    job.poll = !job.t->count && needs_poll(&job) ? (int)poll_place(&job) : -1;
    if (!code16)
        job.group_count = translate_groups(block, job.way, code32, job.groups, job.offset);
    emit_entries(&job);
    bool keeps = job.saved_valid;
    const uint8_t *entry = translate_writable(job.t, block->code);
    if (job.t->count)
        emit_clock(&job);
    emit_insns(&job);
    if (e->at < entry + 5) /* room for a jump */
        emit_bytes(e, (const uint8_t[]){0x90, 0x90, 0x90, 0x90, 0x90}, 5);
    /* The first one, that of the indirect entry, has R10 already. */
    emit_lead(job.stubs[0].from, e->at);
    emit_jmp_gs(e, GS(translated.exit_saved));
    for (unsigned i = 1; i < job.stub_count; i++) /* they become more */
        emit_stub(&job, &job.stubs[i]);
    emit_link_entries(&job);
    block->stale = e->at;
    emit_mov_imm(e, R10, block->rip);
    emit_jmp_gs(e, GS(translated.exit_host));
    block->stale_saved = NULL;
    if (keeps) {
        block->stale_saved = e->at;
        emit_mov_imm(e, R10, block->rip);
        emit_jmp_gs(e, GS(translated.exit_saved));
    }
    return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Where a block goes on. */
#include "engine/soft/translate_job.h"

#include <assert.h>

#include "engine/soft/mmu_internal.h"

/* 16-bit code that runs into the end of its segment is for the run loop. */
static bool is_beyond_64k(const struct job *job, uint64_t rip)
{
    return job->code16 && rip > UINT16_MAX;
}

bool in_page(const struct job *job, uint64_t rip)
{
    return ((rip + job->start) ^ (job->block->rip + job->start)) >> 12 == 0 &&
           !is_beyond_64k(job, rip);
}

uint64_t target_of(const struct job *job, const struct insn *insn)
{
    uint64_t rip = rip_behind(job, insn) + insn->imm;
    return job->code16 ? (uint16_t)rip : job->code32 ? (uint32_t)rip : rip;
}

/* Flags must be in memory, whatever follows. */
static void flags_to_memory(struct job *job)
{
    if (!job->saved_valid)
        save_flags(job);
}

/* Go on where a slot of the jump table says, which is in R11. */
static void emit_jump_to_code(struct emit *e)
{
    emit_gs64(e, OP_ADD_R, R11, GS(translated.code));
    emit_bytes(e, (const uint8_t[]){0x41, 0xff, 0xe3}, 3); /* jmp *%r11 */
}

/* movl $, %gs:indirect */
static void emit_indirect_is(struct emit *e, uint32_t offset)
{
    emit8(e, 0x65);
    emit8(e, 0xc7);
    emit_gs_operand(e, 0, GS(translated.indirect));
    emit32(e, offset);
}

void emit_through_table(struct job *job, uint64_t rip)
{
    struct emit *e = job->e;
    flags_to_memory(job);
    if (is_beyond_64k(job, rip) || !soft_canonical(rip)) {
        if (!soft_canonical(rip))
            emit_indirect_is(e, NO_INDIRECT);
        emit_mov_imm(e, R10, rip);
        emit_jmp_gs(e, GS(translated.exit_saved));
        return;
    }
    emit_mov_imm(e, R10, rip | job->tag);
    emit_bytes(e, (const uint8_t[]){0x65, 0x44, OP_LOAD}, 3); /* mov %gs:, %r11d */
    emit_gs_operand(e, R11, GS_CONTEXT(jumps) + 4 * (size_t)mmu_jump_slot(rip));
    emit_jump_to_code(e);
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

/* Within a trace: the way that it does not go on. */
static void emit_side_exit(struct job *job, const struct insn *insn, bool inverted)
{
    unsigned condition = (insn->opcode_byte & 15u) ^ (inverted ? 1 : 0);
    add_stub(job, STUB_LINK, emit_jcc(job->e, condition))->rip =
        inverted ? rip_behind(job, insn) : target_of(job, insn);
}

static void emit_jump_if(struct job *job, const struct insn *insn, unsigned i)
{
    uint64_t next = rip_behind(job, insn), target = target_of(job, insn);
    if (!job->host_valid)
        restore_flags(job);
    if (!is_last(job, i)) {
        emit_side_exit(job, insn, job->inverted[i]);
        return;
    }
    uint8_t *taken = emit_jcc(job->e, insn->opcode_byte & 15u);
    bool saved = job->saved_valid;
    emit_goto(job, next);
    job->saved_valid = saved;
    if (job->loop.rounds) {
        emit_lead(taken, job->loop_head);
    } else if (in_page(job, target)) {
        add_stub(job, STUB_LINK, taken)->rip = target;
    } else {
        emit_lead(taken, job->e->at);
        emit_through_table(job, target);
    }
}

void emit_loop_end(struct job *job, bool last)
{
    const struct insn *insn = job->insns[job->count - 1];
    uint64_t next = rip_behind(job, insn);
    unsigned condition = insn->opcode_byte & 15u;
    if (!job->host_valid)
        restore_flags(job);
    if (last) {
        emit_lead(emit_jcc(job->e, condition), job->loop_head);
        emit_goto(job, next);
    } else if (in_page(job, next)) {
        add_stub(job, STUB_LINK, emit_jcc(job->e, condition ^ 1))->rip = next;
    } else {
        uint8_t *on = emit_jcc(job->e, condition);
        bool saved = job->saved_valid;
        emit_through_table(job, next);
        job->saved_valid = saved;
        emit_lead(on, job->e->at);
    }
}

static int8_t *emit_jrcxz(struct emit *e)
{
    emit8(e, 0xe3);
    emit8(e, 0);
    return (int8_t *)e->at - 1;
}

/* LOOP, JCXZ: no flag changes. Of CX the register is made: R11 is RCX meanwhile. */
static void emit_loop_insn(struct job *job, const struct insn *insn)
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

/* R11 to be the slot of R10's address, an address in the same half as this code's: if it is in the
 * other one it is not found there. */
static void emit_slot(struct job *job)
{
    struct emit *e = job->e;
    unsigned from = R10;
    if (job->block->rip >> 63) { /* mov %r10, %r11; shr $12, %r11; xor %r10d, %r11d */
        emit_mov(e, R11, R10);
        emit_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xeb, 12, 0x45, 0x31, 0xd3}, 7);
        from = R11;
    }
    emit_mov16(e, R11, from);
}

/* Go on at R10. Flags are in memory. */
static void emit_indirect(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    if (job->tag) {
        emit_mov_imm(e, R11, job->tag);
        emit_rr64(e, 0x09, R11, R10); /* or %r11, %r10 */
    }
    emit_indirect_is(e, block_insn_offset(job->cpu, insn));
    emit_slot(job);
    emit_bytes(e, (const uint8_t[]){0x65, 0x46, OP_LOAD, 0x1c, 0x9d}, 5);
    emit32(e, (uint32_t)GS_CONTEXT(jumps)); /* mov %gs:jumps(, %r11, 4), %r11d */
    emit_jump_to_code(e);
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
    struct look look = emit_look(job, insn, 0, job->word, false);
    add_slow(job, look.miss, insn);
    emit_load_target(job, look.offset);
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
    uint64_t rip = rip_behind(job, insn);
    if (job->code32 || is_imm32(rip)) {
        emit_store_imm_r10(job, rip, offset);
    } else {
        emit_mov_imm(job->e, R11, rip);
        emit_word_r10(job, OP_STORE, R11, offset);
    }
    emit_add_rsp(job, -(int32_t)job->word);
}

static void emit_call(struct job *job, const struct insn *insn, unsigned i)
{
    if (!job->group)
        give_up_flags(job, job->live[i]);
    emit_push_return(job, insn);
    if (is_last(job, i))
        emit_goto(job, target_of(job, insn));
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

void emit_branch(struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    switch ((enum way)job->way[i]) {
    case WAY_JMP:
        if (is_last(job, i))
            emit_goto(job, target_of(job, insn));
        break;
    case WAY_JCC:
        emit_jump_if(job, insn, i);
        break;
    case WAY_LOOP:
        emit_loop_insn(job, insn);
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
        if (is_last(job, i))
            emit_goto(job, rip_behind(job, insn));
        break;
    default:
        assert(false);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Where the guest's arithmetic flags are: in the host's register, in memory, or both. */
#include "engine/soft/translate_job.h"

#include "engine/soft/exec_int.h"

/* The host's flags to AX, as in soft_translated.flags. */
static void emit_flags_to_ax(struct emit *e)
{
    emit8(e, 0x9f); /* lahf */
    emit8(e, 0x0f); /* seto %al */
    emit8(e, 0x90);
    emit8(e, 0xc0);
}

void save_flags(struct job *job)
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

void restore_flags(struct job *job)
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

void give_up_flags(struct job *job, unsigned live)
{
    if (live && !job->saved_valid)
        save_flags(job);
    job->host_valid = false;
}

void need_flags(struct job *job, unsigned i)
{
    const struct insn_flags *f = &job->flags[i];
    unsigned need = f->read;
    if (f->written)
        need |= job->live[i + 1] & ~(unsigned)f->written;
    if (need && !job->host_valid)
        restore_flags(job);
}

unsigned kept_flags(const struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    if (!job->t->options.exact || job->way[i] == WAY_HANDLER || insn->op == OP_FALL_THROUGH)
        return 0;
    switch (insn->op) {
    case OP_MUL:
    case OP_IMUL1:
    case OP_IMUL2:
    case OP_IMUL3:
    case OP_DIV:
    case OP_IDIV:
    case OP_ROL:
    case OP_ROR:
    case OP_RCL:
    case OP_RCR:
        return insn_flags(insn, INSN_COUNT_UNKNOWN).undefined & ARITH;
    default:
        if ((insn->op >= OP_BT && insn->op <= OP_POPCNT) ||
            (insn->op >= OP_ANDN && insn->op <= OP_BZHI))
            return insn_flags(insn, INSN_COUNT_UNKNOWN).undefined & ARITH;
        return 0;
    }
}

void keep_flags(struct job *job, unsigned kept)
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

void note_flags_written(struct job *job, unsigned i)
{
    if (job->flags[i].written) {
        job->host_valid = true;
        job->saved_valid = false;
    }
}

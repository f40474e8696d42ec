/* SPDX-License-Identifier: Apache-2.0 */
/* Near branches, ports, flags, and what is left. */
#include <sched.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/vm.h"

/* --- branches --- */

static void jcc(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t next = soft_next_rip(cpu, i);
    if (condition(cpu->rflags, i->opcode_byte))
        soft_jump(cpu, i, next + i->imm);
    else
        cpu->rip = next;
}

/* In 64-bit code, and for each condition: the most frequent instructions of all, without a branch
 * of their own but at the edge of what is canonical. Behind an instruction that ends there it is
 * the fetch that raises #GP. */
#define JCC64(code)                                                                                \
    static void jcc64_##code(struct soft_cpu *cpu, const struct insn *i)                           \
    {                                                                                              \
        uint64_t next = cpu->rip_page + i->next_offset;                                            \
        bool taken = condition(cpu->rflags, 0x##code);                                             \
        uint64_t rip = taken ? next + i->imm : next;                                               \
        if (__builtin_expect(!soft_canonical(rip), 0) && taken)                                    \
            soft_raise_error(cpu, EXC_GP, 0);                                                      \
        cpu->rip = rip;                                                                            \
    }
/* clang-format off */
JCC64(0) JCC64(1) JCC64(2) JCC64(3) JCC64(4) JCC64(5) JCC64(6) JCC64(7)
JCC64(8) JCC64(9) JCC64(a) JCC64(b) JCC64(c) JCC64(d) JCC64(e) JCC64(f)
    /* clang-format on */

    static soft_exec_fn *const jcc64[16] = {
        jcc64_0, jcc64_1, jcc64_2, jcc64_3, jcc64_4, jcc64_5, jcc64_6, jcc64_7,
        jcc64_8, jcc64_9, jcc64_a, jcc64_b, jcc64_c, jcc64_d, jcc64_e, jcc64_f,
};

static void jmp(struct soft_cpu *cpu, const struct insn *i)
{
    soft_jump(cpu, i, soft_next_rip(cpu, i) + i->imm);
}

static void jmp_indirect(struct soft_cpu *cpu, const struct insn *i)
{
    soft_jump(cpu, i, int_get_rm(cpu, i, i->op_bytes));
}

/* The target is checked before anything is pushed. */
static void call_to(struct soft_cpu *cpu, const struct insn *i, uint64_t target)
{
    uint64_t old = cpu->rip;
    soft_jump(cpu, i, target);
    uint64_t checked = cpu->rip;
    cpu->rip = old;
    soft_push(cpu, i->op_bytes, soft_next_rip(cpu, i));
    cpu->rip = checked;
}

static void call(struct soft_cpu *cpu, const struct insn *i)
{
    call_to(cpu, i, soft_next_rip(cpu, i) + i->imm);
}

static void call_indirect(struct soft_cpu *cpu, const struct insn *i)
{
    call_to(cpu, i, int_get_rm(cpu, i, i->op_bytes));
}

static void ret(struct soft_cpu *cpu, const struct insn *i)
{
    soft_jump(cpu, i, soft_peek(cpu, i->op_bytes, 0));
    soft_drop(cpu, i->op_bytes + ((unsigned)i->imm & 0xffff));
}

static void loop(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t next = soft_next_rip(cpu, i);
    uint64_t count = (cpu->gpr[CPU_RCX] - 1) & insn_addr_mask(i);
    bool zero = cpu->rflags & RFLAGS_ZF;
    bool taken = count != 0 && (i->op == OP_LOOP || zero == (i->op == OP_LOOPE));
    if (taken)
        soft_jump(cpu, i, next + i->imm);
    else
        cpu->rip = next;
    int_put_reg(cpu, i, CPU_RCX, i->addr_bytes, count);
}

static void jcxz(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t next = soft_next_rip(cpu, i);
    if ((cpu->gpr[CPU_RCX] & insn_addr_mask(i)) == 0)
        soft_jump(cpu, i, next + i->imm);
    else
        cpu->rip = next;
}

/* --- ports --- */

static uint16_t port_of(const struct soft_cpu *cpu, const struct insn *i)
{
    return i->opcode->form == FORM_ACC ? (uint8_t)i->imm : (uint16_t)cpu->gpr[CPU_RDX];
}

static void in(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = 0;
    uint16_t port = port_of(cpu, i);
    seg_check_io(cpu, port, i->op_bytes);
    soft_pio_read(cpu, port, i->op_bytes, &value, 1);
    int_put_reg(cpu, i, CPU_RAX, i->op_bytes, value);
}

static void out(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = cpu->gpr[CPU_RAX];
    uint16_t port = port_of(cpu, i);
    seg_check_io(cpu, port, i->op_bytes);
    soft_pio_write(cpu, port, i->op_bytes, &value, 1);
}

/* --- conversions and flags --- */

static void cbw(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t *rax = &cpu->gpr[CPU_RAX];
    if (i->op_bytes == 2)
        soft_set_reg16(cpu, CPU_RAX, (uint16_t)(int8_t)*rax);
    else if (i->op_bytes == 4)
        *rax = (uint32_t)(int16_t)*rax;
    else
        *rax = (uint64_t)(int32_t)*rax;
}

static void cwd(struct soft_cpu *cpu, const struct insn *i)
{
    bool negative = cpu->gpr[CPU_RAX] >> (8 * i->op_bytes - 1) & 1;
    int_put_reg(cpu, i, CPU_RDX, i->op_bytes, negative ? UINT64_MAX : 0);
}

static void lahf(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    ((uint8_t *)&cpu->gpr[CPU_RAX])[1] = (uint8_t)(cpu->rflags | RFLAGS_FIXED);
}

static void sahf(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    uint64_t ah = cpu->gpr[CPU_RAX] >> 8 & LAHF_MASK;
    cpu->rflags = (cpu->rflags & ~LAHF_MASK) | ah;
}

static void flag_op(struct soft_cpu *cpu, const struct insn *i)
{
    switch (i->op) {
    case OP_CLC:
        cpu->rflags &= ~RFLAGS_CF;
        break;
    case OP_STC:
        cpu->rflags |= RFLAGS_CF;
        break;
    case OP_CMC:
        cpu->rflags ^= RFLAGS_CF;
        break;
    case OP_CLD:
        cpu->rflags &= ~RFLAGS_DF;
        break;
    default:
        cpu->rflags |= RFLAGS_DF;
        break;
    }
}

static void salc(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    *(uint8_t *)&cpu->gpr[CPU_RAX] = cpu->rflags & RFLAGS_CF ? 0xff : 0;
}

static void bound(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes, shift = 64 - 8 * bytes;
    /* One bound after the other: the first may fault where the second is beyond the limit. */
    uint64_t offset = insn_offset(cpu, i);
    int64_t index = (int64_t)(cpu->gpr[i->reg] << shift) >> shift;
    int64_t low =
        (int64_t)(mmu_read_sized(cpu, soft_linear(cpu, i->seg, offset, bytes, false), bytes)
                  << shift) >>
        shift;
    int64_t high =
        (int64_t)(mmu_read_sized(cpu, soft_linear(cpu, i->seg, offset + bytes, bytes, false), bytes)
                  << shift) >>
        shift;
    if (index < low || index > high)
        soft_raise(cpu, EXC_BR);
}

/* --- hints --- */

static void nop(struct soft_cpu *cpu, const struct insn *i)
{
    (void)cpu;
    (void)i;
}

/* What spins waits for another vCPU, which may need this host CPU to get on. */
static void pause_hint(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    if (cpu->vm->config.vcpu_count > 1 && (++cpu->pauses & 63) == 0)
        sched_yield();
}

static void fence(struct soft_cpu *cpu, const struct insn *i)
{
    (void)cpu;
    (void)i;
    soft_fence();
}

static void clflush(struct soft_cpu *cpu, const struct insn *i)
{
    mmu_check(cpu, insn_linear(cpu, i, 1, false), 1, false);
}

soft_exec_fn *flow_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_JCC: /* a 64-bit operand size is that of branches in 64-bit code alone */
        return insn->op_bytes == 8 ? jcc64[insn->opcode_byte & 15] : jcc;
    case OP_JMP:
        return jmp;
    case OP_JMP_IND:
        return jmp_indirect;
    case OP_CALL:
        return call;
    case OP_CALL_IND:
        return call_indirect;
    case OP_RET:
        return ret;
    case OP_LOOP:
    case OP_LOOPE:
    case OP_LOOPNE:
        return loop;
    case OP_JCXZ:
        return jcxz;
    default:
        return NULL;
    }
}

soft_exec_fn *misc_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_IN:
        return in;
    case OP_OUT:
        return out;
    case OP_CBW:
        return cbw;
    case OP_CWD:
        return cwd;
    case OP_LAHF:
        return lahf;
    case OP_SAHF:
        return sahf;
    case OP_CLC:
    case OP_STC:
    case OP_CMC:
    case OP_CLD:
    case OP_STD:
        return flag_op;
    case OP_SALC:
        return salc;
    case OP_BOUND:
        return bound;
    case OP_NOP:
    case OP_PREFETCH:
        return nop;
    case OP_PAUSE:
        return pause_hint;
    case OP_FENCE:
        return fence;
    case OP_CLFLUSH:
        return clflush;
    default:
        return NULL;
    }
}

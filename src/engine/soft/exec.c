/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/exec.h"

#include "engine/soft/exec_int.h"

static void exec_undefined(struct soft_cpu *cpu, const struct insn *insn)
{
    (void)insn;
    soft_raise(cpu, EXC_UD);
}

void exec_bind(struct soft_cpu *cpu, struct insn *insn)
{
    soft_exec_fn *fn = NULL;
    insn->stub = 0;
    if (insn->op < OP_INT_END)
        fn = exec_int_bind(cpu, insn);
    else if (insn->op < OP_SYS_END)
        fn = exec_sys_bind(cpu, insn);
    else if (insn->op < OP_VEC_END)
        fn = exec_vec_bind(cpu, insn);
    insn->exec = fn ? fn : exec_undefined;
}

soft_exec_fn *exec_int_bind(struct soft_cpu *cpu, struct insn *insn)
{
    static soft_exec_fn *(*const binders[])(const struct insn *insn) = {
        alu_bind, move_bind, flow_bind, shift_bind, bit_bind, muldiv_bind, string_bind, misc_bind,
    };
    (void)cpu;
    for (size_t i = 0; i < sizeof(binders) / sizeof(binders[0]); i++) {
        soft_exec_fn *fn = binders[i](insn);
        if (fn)
            return fn;
    }
    return NULL;
}

/* --- operands by width --- */

uint64_t int_get_reg(struct soft_cpu *cpu, const struct insn *insn, unsigned reg, unsigned bytes)
{
    switch (bytes) {
    case 1:
        return get8(cpu, insn, reg);
    case 2:
        return (uint16_t)cpu->gpr[reg];
    case 4:
        return (uint32_t)cpu->gpr[reg];
    default:
        return cpu->gpr[reg];
    }
}

void int_put_reg(struct soft_cpu *cpu, const struct insn *insn, unsigned reg, unsigned bytes,
                 uint64_t value)
{
    switch (bytes) {
    case 1:
        put8(cpu, insn, reg, (uint8_t)value);
        break;
    case 2:
        soft_set_reg16(cpu, reg, (uint16_t)value);
        break;
    case 4:
        cpu->gpr[reg] = (uint32_t)value;
        break;
    default:
        cpu->gpr[reg] = value;
        break;
    }
}

uint64_t mmu_read_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes)
{
    switch (bytes) {
    case 1:
        return mmu_read8(cpu, la);
    case 2:
        return mmu_read16(cpu, la);
    case 4:
        return mmu_read32(cpu, la);
    default:
        return mmu_read64(cpu, la);
    }
}

uint64_t mmu_read_for_write_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes)
{
    switch (bytes) {
    case 1:
        return mmu_read_for_write8(cpu, la);
    case 2:
        return mmu_read_for_write16(cpu, la);
    case 4:
        return mmu_read_for_write32(cpu, la);
    default:
        return mmu_read_for_write64(cpu, la);
    }
}

void mmu_write_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes, uint64_t value)
{
    switch (bytes) {
    case 1:
        mmu_write8(cpu, la, (uint8_t)value);
        break;
    case 2:
        mmu_write16(cpu, la, (uint16_t)value);
        break;
    case 4:
        mmu_write32(cpu, la, (uint32_t)value);
        break;
    default:
        mmu_write64(cpu, la, value);
        break;
    }
}

uint64_t int_get_rm(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes)
{
    return insn->is_mem ? mmu_read_sized(cpu, insn_linear(cpu, insn, bytes, false), bytes)
                        : int_get_reg(cpu, insn, insn->rm, bytes);
}

void int_put_rm(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes, uint64_t value)
{
    if (insn->is_mem)
        mmu_write_sized(cpu, insn_linear(cpu, insn, bytes, true), bytes, value);
    else
        int_put_reg(cpu, insn, insn->rm, bytes, value);
}

uint64_t int_get_rm_for_write(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes,
                              uint64_t *la)
{
    if (!insn->is_mem)
        return int_get_reg(cpu, insn, insn->rm, bytes);
    *la = insn_linear(cpu, insn, bytes, true);
    return mmu_read_for_write_sized(cpu, *la, bytes);
}

void int_put_rm_at(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes, uint64_t la,
                   uint64_t value)
{
    if (insn->is_mem)
        mmu_write_sized(cpu, la, bytes, value);
    else
        int_put_reg(cpu, insn, insn->rm, bytes, value);
}

/* --- LOCK --- */

#define CAS(bits, suffix)                                                                          \
    static bool cas##bits(uint8_t *host, uint##bits##_t *expected, uint##bits##_t desired)         \
    {                                                                                              \
        bool done;                                                                                 \
        __asm__ volatile("lock cmpxchg" suffix " %3, (%2)"                                         \
                         : "=@ccz"(done), "+a"(*expected)                                          \
                         : "r"(host), "r"(desired)                                                 \
                         : "memory");                                                              \
        return done;                                                                               \
    }
CAS(8, "b")
CAS(16, "w")
CAS(32, "l")
CAS(64, "q")
#undef CAS

bool int_cas(uint8_t *host, unsigned bytes, uint64_t *expected, uint64_t desired)
{
    uint8_t e8 = (uint8_t)*expected;
    uint16_t e16 = (uint16_t)*expected;
    uint32_t e32 = (uint32_t)*expected;
    bool done;
    switch (bytes) {
    case 1:
        done = cas8(host, &e8, (uint8_t)desired);
        *expected = e8;
        return done;
    case 2:
        done = cas16(host, &e16, (uint16_t)desired);
        *expected = e16;
        return done;
    case 4:
        done = cas32(host, &e32, (uint32_t)desired);
        *expected = e32;
        return done;
    default:
        return cas64(host, expected, desired);
    }
}

uint64_t int_locked(struct soft_cpu *cpu, const struct insn *insn, uint64_t la, unsigned bytes,
                    int_modify_fn *fn, uint64_t operand)
{
    uint8_t *host = mmu_lock(cpu, la, bytes);
    uint64_t old = 0, flags = cpu->rflags;
    if (host) {
        __builtin_memcpy(&old, host, bytes);
        while (!int_cas(host, bytes, &old, fn(cpu, old, insn, operand)))
            cpu->rflags = flags; /* the next try starts from the same state */
        mmu_lock_done(cpu, la, bytes);
        return old;
    }
    mmu_check(cpu, la, bytes, true);
    soft_exclusive_begin(cpu);
    old = mmu_read_sized(cpu, la, bytes);
    mmu_write_sized(cpu, la, bytes, fn(cpu, old, insn, operand));
    soft_exclusive_end(cpu);
    return old;
}

/* --- stack --- */

static uint64_t stack_linear(struct soft_cpu *cpu, uint64_t rsp, unsigned size, bool write)
{
    uint64_t offset = rsp & soft_stack_mask(cpu);
    soft_check_stack(cpu, offset, size);
    return soft_linear(cpu, SEG_SS, offset, size, write);
}

void soft_push(struct soft_cpu *cpu, unsigned size, uint64_t value)
{
    uint64_t rsp = cpu->gpr[CPU_RSP] - size;
    mmu_write_sized(cpu, stack_linear(cpu, rsp, size, true), size, value);
    soft_set_rsp(cpu, rsp);
}

uint64_t soft_peek(struct soft_cpu *cpu, unsigned size, unsigned skip)
{
    return mmu_read_sized(cpu, stack_linear(cpu, cpu->gpr[CPU_RSP] + skip, size, false), size);
}

void soft_drop(struct soft_cpu *cpu, unsigned bytes)
{
    soft_set_rsp(cpu, cpu->gpr[CPU_RSP] + bytes);
}

/* --- near branches --- */

void soft_jump(struct soft_cpu *cpu, const struct insn *insn, uint64_t target)
{
    if (soft_code64(cpu)) {
        if (!soft_canonical(target))
            soft_raise_error(cpu, EXC_GP, 0);
        cpu->rip = target;
        return;
    }
    target &= insn->op_bytes == 2 ? 0xffff : 0xffffffff;
    if (!cpu->code_flat && target > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->rip = target;
}

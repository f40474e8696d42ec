/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handlers of instructions: for each struct insn one function, chosen once when the block is made,
 * specialised by operand size and by register or memory where that pays. The rules are in cpu.h.
 *
 * After a handler returns, the loop goes on with the next instruction of the block. Handlers of
 * instructions with ATTR_BRANCH or ATTR_ENDS_BLOCK set cpu->rip.
 */
#ifndef HULL_ENGINE_SOFT_EXEC_H
#define HULL_ENGINE_SOFT_EXEC_H

#include "engine/soft/cpu.h"
#include "engine/soft/insn.h"
#include "engine/soft/mmu.h"

/* Never NULL: what has no handler is #UD. Sets insn->exec, and stub where the handler needs it. */
void exec_bind(struct soft_cpu *cpu, struct insn *insn);

/* By range of operations: NULL where the combination is undefined. exec_int.c ... */
soft_exec_fn *exec_int_bind(struct soft_cpu *cpu, struct insn *insn);
soft_exec_fn *exec_sys_bind(struct soft_cpu *cpu, struct insn *insn);
soft_exec_fn *exec_vec_bind(struct soft_cpu *cpu, struct insn *insn);

/* --- where we are --- */

static inline uint64_t soft_ip_mask(const struct soft_cpu *cpu)
{
    return soft_code64(cpu) ? ~0ULL : 0xffffffffULL;
}

/* RIP of the instruction after insn. */
static inline uint64_t soft_next_rip(const struct soft_cpu *cpu, const struct insn *insn)
{
    return (cpu->rip_page + insn->next_offset) & soft_ip_mask(cpu);
}

/* --- registers --- */

/* A byte register: 4-7 without any REX are AH, CH, DH, BH. */
static inline uint8_t *soft_reg8(struct soft_cpu *cpu, const struct insn *insn, unsigned reg)
{
    if (reg >= 4 && reg < 8 && !(insn->prefixes & (PREFIX_REX | PREFIX_VEX)))
        return (uint8_t *)&cpu->gpr[reg - 4] + 1;
    return (uint8_t *)&cpu->gpr[reg];
}

/* A 32-bit result zeroes the upper half; 8- and 16-bit ones leave the rest. */
static inline void soft_set_reg16(struct soft_cpu *cpu, unsigned reg, uint16_t value)
{
    cpu->gpr[reg] = (cpu->gpr[reg] & ~0xffffULL) | value;
}

static inline void soft_set_reg32(struct soft_cpu *cpu, unsigned reg, uint32_t value)
{
    cpu->gpr[reg] = value;
}

/* --- memory operands --- */

/* The offset within the segment (SDM vol. 1, 3.7.5). Not for VSIB. */
static inline uint64_t insn_offset(const struct soft_cpu *cpu, const struct insn *insn)
{
    uint64_t offset = cpu->gpr[insn->base] + (cpu->gpr[insn->index] << insn->scale) +
                      (uint64_t)(int64_t)insn->disp;
    if (__builtin_expect(insn->rip_relative, 0))
        offset += cpu->rip_page + insn->next_offset;
    return offset & insn_addr_mask(insn);
}

/* seg.c: limit, type and presence of a segment that is not flat: raises #GP(0), or #SS(0) for SS.
 */
void seg_check_access(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                      bool write);

/* A linear address from segment and offset, checked for an access of size bytes. */
static inline uint64_t soft_linear(struct soft_cpu *cpu, unsigned seg, uint64_t offset,
                                   unsigned size, bool write)
{
    uint8_t flat = write ? cpu->seg_flat_write : cpu->seg_flat;
    if (__builtin_expect(!(flat >> seg & 1), 0))
        seg_check_access(cpu, seg, offset, size, write);
    return (cpu->seg_base[seg] + offset) & cpu->mode.linear_mask;
}

/* Before insn_linear(), which a misaligned operand of vectors does not come to: #GP, though #SS
 * would be due as well. As on AMD's processors. */
static inline void insn_check_alignment(struct soft_cpu *cpu, const struct insn *insn,
                                        unsigned align)
{
    if (__builtin_expect((cpu->seg_base[insn->seg] + insn_offset(cpu, insn)) & (align - 1), 0))
        soft_raise_error(cpu, EXC_GP, 0);
}

/* An operand of the stack in 64-bit code: raises #SS where an end of it is not canonical. */
static inline void soft_check_stack(struct soft_cpu *cpu, uint64_t offset, unsigned size)
{
    if (soft_code64(cpu) && !(soft_canonical(offset) && soft_canonical(offset + size - 1)))
        soft_raise_error(cpu, EXC_SS, 0);
}

static inline uint64_t insn_linear(struct soft_cpu *cpu, const struct insn *insn, unsigned size,
                                   bool write)
{
    return soft_linear(cpu, insn->seg, insn_offset(cpu, insn), size, write);
}

/* --- the stack: at the stack segment's width; size 2, 4, 8 --- */

/* RSP as it is used as an address, and with a new value the part of RSP that the mode uses. */
static inline uint64_t soft_stack_mask(const struct soft_cpu *cpu)
{
    return cpu->mode.stack_bytes == 8 ? ~0ULL : cpu->mode.stack_bytes == 4 ? 0xffffffffULL : 0xffff;
}

static inline void soft_set_rsp(struct soft_cpu *cpu, uint64_t rsp)
{
    uint64_t mask = soft_stack_mask(cpu);
    if (cpu->mode.stack_bytes == 4)
        cpu->gpr[CPU_RSP] = rsp & mask;
    else
        cpu->gpr[CPU_RSP] = (cpu->gpr[CPU_RSP] & ~mask) | (rsp & mask);
}

/* Write below RSP, then change RSP: so a fault changes nothing. */
void soft_push(struct soft_cpu *cpu, unsigned size, uint64_t value);
/* Read at RSP + skip, RSP unchanged: the caller adds what it has popped when all is checked. */
uint64_t soft_peek(struct soft_cpu *cpu, unsigned size, unsigned skip);
void soft_drop(struct soft_cpu *cpu, unsigned bytes);

/* --- flow --- */

/* Near branch: checks the target (canonical; CS limit), then sets RIP. op_bytes 2 truncates it. */
void soft_jump(struct soft_cpu *cpu, const struct insn *insn, uint64_t target);

/* I/O permission (SDM vol. 1, 19.5): raises #GP(0). seg.c */
void seg_check_io(struct soft_cpu *cpu, unsigned port, unsigned size);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the integer handlers share: operands by width, and arithmetic done by the host's own
 * instruction, whose flags become the guest's.
 *
 * Flags come out of the host by LAHF and SETO: AH has SF ZF AF PF CF at RFLAGS' places, AL has OF.
 */
#ifndef HULL_ENGINE_SOFT_EXEC_INT_H
#define HULL_ENGINE_SOFT_EXEC_INT_H

#include "engine/soft/exec.h"

/* --- flags --- */

#define HOST_FLAGS "lahf\n\tseto %%al"

#define LAHF_MASK  (RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF | RFLAGS_CF)

static inline uint64_t flags_of_host(uint16_t ax)
{
    return (ax >> 8 & LAHF_MASK) | (uint64_t)(ax & 1) << 11;
}

static inline void set_flags(struct soft_cpu *cpu, uint16_t ax)
{
    cpu->rflags = (cpu->rflags & ~RFLAGS_ARITH) | flags_of_host(ax);
}

/* Only those of mask. */
static inline void set_some_flags(struct soft_cpu *cpu, uint16_t ax, uint64_t mask)
{
    cpu->rflags = (cpu->rflags & ~mask) | (flags_of_host(ax) & mask);
}

static inline void set_flag(struct soft_cpu *cpu, uint64_t flag, bool on)
{
    cpu->rflags = on ? cpu->rflags | flag : cpu->rflags & ~flag;
}

/* Condition codes: the low four bits of Jcc, SETcc, CMOVcc (SDM vol. 1, appendix B). */
static inline bool condition(uint64_t f, unsigned code)
{
    bool value;
    switch (code >> 1 & 7) {
    case 0:
        value = f & RFLAGS_OF;
        break;
    case 1:
        value = f & RFLAGS_CF;
        break;
    case 2:
        value = f & RFLAGS_ZF;
        break;
    case 3:
        value = f & (RFLAGS_CF | RFLAGS_ZF);
        break;
    case 4:
        value = f & RFLAGS_SF;
        break;
    case 5:
        value = f & RFLAGS_PF;
        break;
    case 6:
        value = (f >> 7 ^ f >> 11) & 1;
        break;
    default:
        value = (f & RFLAGS_ZF) || ((f >> 7 ^ f >> 11) & 1);
        break;
    }
    return value != (code & 1);
}

/* --- operands by width --- */

static inline uint8_t get8(struct soft_cpu *cpu, const struct insn *insn, unsigned reg)
{
    return *soft_reg8(cpu, insn, reg);
}

static inline uint16_t get16(struct soft_cpu *cpu, const struct insn *insn, unsigned reg)
{
    (void)insn;
    return (uint16_t)cpu->gpr[reg];
}

static inline uint32_t get32(struct soft_cpu *cpu, const struct insn *insn, unsigned reg)
{
    (void)insn;
    return (uint32_t)cpu->gpr[reg];
}

static inline uint64_t get64(struct soft_cpu *cpu, const struct insn *insn, unsigned reg)
{
    (void)insn;
    return cpu->gpr[reg];
}

static inline void put8(struct soft_cpu *cpu, const struct insn *insn, unsigned reg, uint8_t value)
{
    *soft_reg8(cpu, insn, reg) = value;
}

static inline void put16(struct soft_cpu *cpu, const struct insn *insn, unsigned reg,
                         uint16_t value)
{
    (void)insn;
    soft_set_reg16(cpu, reg, value);
}

static inline void put32(struct soft_cpu *cpu, const struct insn *insn, unsigned reg,
                         uint32_t value)
{
    (void)insn;
    cpu->gpr[reg] = value;
}

static inline void put64(struct soft_cpu *cpu, const struct insn *insn, unsigned reg,
                         uint64_t value)
{
    (void)insn;
    cpu->gpr[reg] = value;
}

static inline unsigned size_index(unsigned bytes)
{
    return (unsigned)__builtin_ctz(bytes);
}

/* By width, for instructions that are not hot. */
uint64_t int_get_reg(struct soft_cpu *cpu, const struct insn *insn, unsigned reg, unsigned bytes);
void int_put_reg(struct soft_cpu *cpu, const struct insn *insn, unsigned reg, unsigned bytes,
                 uint64_t value);
/* The r/m operand. */
uint64_t int_get_rm(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes);
/* Written at once. */
void int_put_rm(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes, uint64_t value);
/* To be written back by int_put_rm_at() with what comes in *la: for read-modify-write. */
uint64_t int_get_rm_for_write(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes,
                              uint64_t *la);
void int_put_rm_at(struct soft_cpu *cpu, const struct insn *insn, unsigned bytes, uint64_t la,
                   uint64_t value);
uint64_t mmu_read_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes);
uint64_t mmu_read_for_write_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes);
void mmu_write_sized(struct soft_cpu *cpu, uint64_t la, unsigned bytes, uint64_t value);

/* --- LOCK --- */

/*
 * Compare-and-swap of bytes (1, 2, 4, 8) at a host address of any alignment: false with the present
 * value in *expected.
 */
bool int_cas(uint8_t *host, unsigned bytes, uint64_t *expected, uint64_t desired);

/*
 * Replace the operand at la by fn(cpu, old, ctx) in one atomic step; returns the old value. fn may
 * be called several times: the last one counts (its flags too). Takes the exclusive path where the
 * address is no plain memory.
 */
typedef uint64_t int_modify_fn(struct soft_cpu *cpu, uint64_t old, const struct insn *insn,
                               uint64_t operand);
uint64_t int_locked(struct soft_cpu *cpu, const struct insn *insn, uint64_t la, unsigned bytes,
                    int_modify_fn *fn, uint64_t operand);

/* --- by file --- */

soft_exec_fn *alu_bind(const struct insn *insn);
soft_exec_fn *shift_bind(const struct insn *insn);
soft_exec_fn *bit_bind(const struct insn *insn);
soft_exec_fn *move_bind(const struct insn *insn);
soft_exec_fn *muldiv_bind(const struct insn *insn);
soft_exec_fn *string_bind(const struct insn *insn);
soft_exec_fn *flow_bind(const struct insn *insn);
soft_exec_fn *misc_bind(const struct insn *insn);

#endif

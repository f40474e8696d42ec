/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plain moves between vector registers, memory and general registers: what most vector
 * instructions of most programs are, done without generated code.
 */
#include "engine/soft/exec_vec.h"

/* --- 16 and 32 bytes --- */

static inline void gate_of(struct soft_cpu *cpu, bool vex)
{
    if (vex)
        gate_avx(cpu);
    else
        gate_sse(cpu);
}

static inline uint64_t operand(struct soft_cpu *cpu, const struct insn *insn, unsigned size,
                               bool write)
{
    if (insn->opcode->attr & ATTR_ALIGNED)
        insn_check_alignment(cpu, insn, size);
    return insn_linear(cpu, insn, size, write);
}

static inline void load(struct soft_cpu *cpu, const struct insn *insn, bool vex, unsigned size)
{
    uint8_t buffer[32];
    const uint8_t *from;
    gate_of(cpu, vex);
    uint64_t la = operand(cpu, insn, size, false);
    from = mmu_fast(cpu, la, size, false);
    if (__builtin_expect(!from, 0)) {
        mmu_read_bytes(cpu, la, buffer, size);
        from = buffer;
    }
    memcpy(cpu->fpu.xmm[insn->reg], from, 16);
    if (size == 32)
        memcpy(cpu->fpu.ymm_hi[insn->reg], from + 16, 16);
    else if (vex)
        memset(cpu->fpu.ymm_hi[insn->reg], 0, 16);
}

static inline void store(struct soft_cpu *cpu, const struct insn *insn, bool vex, unsigned size)
{
    gate_of(cpu, vex);
    uint64_t la = operand(cpu, insn, size, true);
    uint8_t *to = mmu_fast(cpu, la, size, true);
    if (__builtin_expect(to != NULL, 1)) {
        memcpy(to, cpu->fpu.xmm[insn->reg], 16);
        if (size == 32)
            memcpy(to + 16, cpu->fpu.ymm_hi[insn->reg], 16);
        return;
    }
    uint8_t buffer[32];
    memcpy(buffer, cpu->fpu.xmm[insn->reg], 16);
    memcpy(buffer + 16, cpu->fpu.ymm_hi[insn->reg], 16);
    mmu_write_bytes(cpu, la, buffer, size);
}

static inline void copy(struct soft_cpu *cpu, unsigned to, unsigned from, bool vex, unsigned size)
{
    uint8_t low[16], high[16];
    gate_of(cpu, vex);
    memcpy(low, cpu->fpu.xmm[from], 16);
    memcpy(cpu->fpu.xmm[to], low, 16);
    if (!vex)
        return;
    memcpy(high, cpu->fpu.ymm_hi[from], 16);
    if (size == 16)
        memset(high, 0, 16);
    memcpy(cpu->fpu.ymm_hi[to], high, 16);
}

#define MOVES(NAME, VEX, SIZE)                                                                     \
    static void load_##NAME(struct soft_cpu *cpu, const struct insn *insn)                         \
    {                                                                                              \
        load(cpu, insn, VEX, SIZE);                                                                \
    }                                                                                              \
    static void store_##NAME(struct soft_cpu *cpu, const struct insn *insn)                        \
    {                                                                                              \
        store(cpu, insn, VEX, SIZE);                                                               \
    }                                                                                              \
    static void copy_to_reg_##NAME(struct soft_cpu *cpu, const struct insn *insn)                  \
    {                                                                                              \
        copy(cpu, insn->reg, insn->rm, VEX, SIZE);                                                 \
    }                                                                                              \
    static void copy_to_rm_##NAME(struct soft_cpu *cpu, const struct insn *insn)                   \
    {                                                                                              \
        copy(cpu, insn->rm, insn->reg, VEX, SIZE);                                                 \
    }
MOVES(sse, false, 16)
MOVES(avx16, true, 16)
MOVES(avx32, true, 32)
#undef MOVES

/* --- 4 and 8 bytes --- */

static inline void put_low(struct soft_cpu *cpu, unsigned reg, uint64_t value, bool vex)
{
    memcpy(cpu->fpu.xmm[reg], &value, 8);
    memset(cpu->fpu.xmm[reg] + 8, 0, 8);
    if (vex)
        memset(cpu->fpu.ymm_hi[reg], 0, 16);
}

static inline uint64_t get_low(const struct soft_cpu *cpu, unsigned reg)
{
    uint64_t value;
    memcpy(&value, cpu->fpu.xmm[reg], 8);
    return value;
}

/* Loads that zero the rest of the register: MOVSS, MOVSD, MOVD, MOVQ from memory. */
static void load_scalar(struct soft_cpu *cpu, const struct insn *insn)
{
    bool vex = insn->prefixes & PREFIX_VEX;
    gate_of(cpu, vex);
    uint64_t la = insn_linear(cpu, insn, insn->mem_bytes, false);
    put_low(cpu, insn->reg, insn->mem_bytes == 8 ? mmu_read64(cpu, la) : mmu_read32(cpu, la), vex);
}

static void store_scalar(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_of(cpu, insn->prefixes & PREFIX_VEX);
    uint64_t la = insn_linear(cpu, insn, insn->mem_bytes, true);
    uint64_t value = get_low(cpu, insn->reg);
    if (insn->mem_bytes == 8)
        mmu_write64(cpu, la, value);
    else
        mmu_write32(cpu, la, (uint32_t)value);
}

static void general_to_vector(struct soft_cpu *cpu, const struct insn *insn)
{
    bool vex = insn->prefixes & PREFIX_VEX;
    uint64_t value = cpu->gpr[insn->rm];
    gate_of(cpu, vex);
    put_low(cpu, insn->reg, insn->prefixes & PREFIX_REX_W ? value : (uint32_t)value, vex);
}

static void vector_to_general(struct soft_cpu *cpu, const struct insn *insn)
{
    uint64_t value = get_low(cpu, insn->reg);
    gate_of(cpu, insn->prefixes & PREFIX_VEX);
    cpu->gpr[insn->rm] = insn->prefixes & PREFIX_REX_W ? value : (uint32_t)value;
}

/* --- which --- */

static soft_exec_fn *whole(const struct insn *insn, bool to_rm)
{
    static soft_exec_fn *const loads[] = {load_sse, load_avx16, load_avx32};
    static soft_exec_fn *const stores[] = {store_sse, store_avx16, store_avx32};
    static soft_exec_fn *const to_regs[] = {copy_to_reg_sse, copy_to_reg_avx16, copy_to_reg_avx32};
    static soft_exec_fn *const to_rms[] = {copy_to_rm_sse, copy_to_rm_avx16, copy_to_rm_avx32};
    unsigned i = !(insn->prefixes & PREFIX_VEX) ? 0 : insn->op_bytes == 32 ? 2 : 1;
    if (insn->is_mem)
        return to_rm ? stores[i] : loads[i];
    return to_rm ? to_rms[i] : to_regs[i];
}

soft_exec_fn *vec_move_bind(const struct insn *insn)
{
    struct vec_opcode code = vec_opcode_of(insn);
    bool packed = code.pp < 2, scalar = !packed;
    if (insn->op != OP_VEC || code.map != 1 || insn->opcode->attr & ATTR_MMX)
        return NULL;
    switch (insn->opcode_byte) {
    case 0x10:
    case 0x11:
        if (packed)
            return whole(insn, insn->opcode_byte & 1);
        if (!insn->is_mem)
            return NULL;
        return insn->opcode_byte & 1 ? store_scalar : load_scalar;
    case 0x28:
    case 0x29:
        return whole(insn, insn->opcode_byte & 1);
    case 0x2b: /* MOVNTPS, MOVNTPD; MOVNTSS, MOVNTSD */
        return scalar ? store_scalar : whole(insn, true);
    case 0x6f: /* MOVDQA, MOVDQU */
        return whole(insn, false);
    case 0x7f:
    case 0xe7: /* MOVNTDQ */
        return whole(insn, true);
    case 0xf0: /* LDDQU */
        return whole(insn, false);
    case 0x6e:
        return insn->is_mem ? load_scalar : general_to_vector;
    case 0x7e:
        if (code.pp == 2)
            return insn->is_mem ? load_scalar : NULL;
        return insn->is_mem ? store_scalar : vector_to_general;
    case 0xd6: /* MOVQ; MOVQ2DQ and MOVDQ2Q are MMX */
        return insn->is_mem ? store_scalar : NULL;
    default:
        return NULL;
    }
}

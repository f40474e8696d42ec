/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two-operand arithmetic and logic (ADD to TEST), INC, DEC, NEG, NOT. One function for each
 * operation, width and place of the operands, since these are half of all instructions.
 */
#include "engine/soft/exec_int.h"

/* --- the operations --- */

/* result = a OP b with the host's instruction; the carry comes in where it is an operand. */
#define PLAIN(name, mnemonic, bits, suffix)                                                        \
    static inline uint##bits##_t name##bits(struct soft_cpu *cpu, uint##bits##_t a,                \
                                            uint##bits##_t b)                                      \
    {                                                                                              \
        uint16_t ax;                                                                               \
        __asm__(mnemonic suffix " %2, %1\n\t" HOST_FLAGS : "=&a"(ax), "+r"(a) : "r"(b) : "cc");    \
        set_flags(cpu, ax);                                                                        \
        return a;                                                                                  \
    }

#define CARRY(name, mnemonic, bits, suffix)                                                        \
    static inline uint##bits##_t name##bits(struct soft_cpu *cpu, uint##bits##_t a,                \
                                            uint##bits##_t b)                                      \
    {                                                                                              \
        uint16_t ax;                                                                               \
        __asm__("btl $0, %3\n\t" mnemonic suffix " %2, %1\n\t" HOST_FLAGS                          \
                : "=&a"(ax), "+r"(a)                                                               \
                : "r"(b), "r"((uint32_t)cpu->rflags)                                               \
                : "cc");                                                                           \
        set_flags(cpu, ax);                                                                        \
        return a;                                                                                  \
    }

#define ALL_WIDTHS(DEFINE, name, mnemonic)                                                         \
    DEFINE(name, mnemonic, 8, "b")                                                                 \
    DEFINE(name, mnemonic, 16, "w")                                                                \
    DEFINE(name, mnemonic, 32, "l")                                                                \
    DEFINE(name, mnemonic, 64, "q")

ALL_WIDTHS(PLAIN, add, "add")
ALL_WIDTHS(PLAIN, or, "or")
ALL_WIDTHS(CARRY, adc, "adc")
ALL_WIDTHS(CARRY, sbb, "sbb")
ALL_WIDTHS(PLAIN, and, "and")
ALL_WIDTHS(PLAIN, sub, "sub")
ALL_WIDTHS(PLAIN, xor, "xor")

/* --- places: destination and source --- */

/* Register operand r/m and memory operand are different functions; an immediate is a source like
 * another. */
#define WRITING(op, bits)                                                                          \
    static void op##bits##_reg_reg(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        put##bits(cpu, i, i->reg,                                                                  \
                  op##bits(cpu, get##bits(cpu, i, i->reg), get##bits(cpu, i, i->rm)));             \
    }                                                                                              \
    static void op##bits##_reg_mem(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        uint##bits##_t b = mmu_read##bits(cpu, insn_linear(cpu, i, (bits) / 8, false));            \
        put##bits(cpu, i, i->reg, op##bits(cpu, get##bits(cpu, i, i->reg), b));                    \
    }                                                                                              \
    static void op##bits##_rm_reg(struct soft_cpu *cpu, const struct insn *i)                      \
    {                                                                                              \
        put##bits(cpu, i, i->rm,                                                                   \
                  op##bits(cpu, get##bits(cpu, i, i->rm), get##bits(cpu, i, i->reg)));             \
    }                                                                                              \
    static void op##bits##_mem_reg(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        uint64_t la = insn_linear(cpu, i, (bits) / 8, true);                                       \
        uint##bits##_t a = mmu_read_for_write##bits(cpu, la);                                      \
        mmu_write##bits(cpu, la, op##bits(cpu, a, get##bits(cpu, i, i->reg)));                     \
    }                                                                                              \
    static void op##bits##_rm_imm(struct soft_cpu *cpu, const struct insn *i)                      \
    {                                                                                              \
        put##bits(cpu, i, i->rm, op##bits(cpu, get##bits(cpu, i, i->rm), (uint##bits##_t)i->imm)); \
    }                                                                                              \
    static void op##bits##_mem_imm(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        uint64_t la = insn_linear(cpu, i, (bits) / 8, true);                                       \
        uint##bits##_t a = mmu_read_for_write##bits(cpu, la);                                      \
        mmu_write##bits(cpu, la, op##bits(cpu, a, (uint##bits##_t)i->imm));                        \
    }                                                                                              \
    static void op##bits##_acc_imm(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        put##bits(cpu, i, 0, op##bits(cpu, get##bits(cpu, i, 0), (uint##bits##_t)i->imm));         \
    }                                                                                              \
    static uint64_t op##bits##_modify(struct soft_cpu *cpu, uint64_t old, const struct insn *i,    \
                                      uint64_t operand)                                            \
    {                                                                                              \
        (void)i;                                                                                   \
        return op##bits(cpu, (uint##bits##_t)old, (uint##bits##_t)operand);                        \
    }                                                                                              \
    static void op##bits##_lock_reg(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        int_locked(cpu, i, insn_linear(cpu, i, (bits) / 8, true), (bits) / 8, op##bits##_modify,   \
                   get##bits(cpu, i, i->reg));                                                     \
    }                                                                                              \
    static void op##bits##_lock_imm(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        int_locked(cpu, i, insn_linear(cpu, i, (bits) / 8, true), (bits) / 8, op##bits##_modify,   \
                   i->imm);                                                                        \
    }

/* Only the flags: CMP by SUB, TEST by AND. */
#define COMPARING(name, op, bits)                                                                  \
    static void name##bits##_reg_reg(struct soft_cpu *cpu, const struct insn *i)                   \
    {                                                                                              \
        op##bits(cpu, get##bits(cpu, i, i->reg), get##bits(cpu, i, i->rm));                        \
    }                                                                                              \
    static void name##bits##_reg_mem(struct soft_cpu *cpu, const struct insn *i)                   \
    {                                                                                              \
        uint##bits##_t b = mmu_read##bits(cpu, insn_linear(cpu, i, (bits) / 8, false));            \
        op##bits(cpu, get##bits(cpu, i, i->reg), b);                                               \
    }                                                                                              \
    static void name##bits##_rm_reg(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        op##bits(cpu, get##bits(cpu, i, i->rm), get##bits(cpu, i, i->reg));                        \
    }                                                                                              \
    static void name##bits##_mem_reg(struct soft_cpu *cpu, const struct insn *i)                   \
    {                                                                                              \
        uint##bits##_t a = mmu_read##bits(cpu, insn_linear(cpu, i, (bits) / 8, false));            \
        op##bits(cpu, a, get##bits(cpu, i, i->reg));                                               \
    }                                                                                              \
    static void name##bits##_rm_imm(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        op##bits(cpu, get##bits(cpu, i, i->rm), (uint##bits##_t)i->imm);                           \
    }                                                                                              \
    static void name##bits##_mem_imm(struct soft_cpu *cpu, const struct insn *i)                   \
    {                                                                                              \
        uint##bits##_t a = mmu_read##bits(cpu, insn_linear(cpu, i, (bits) / 8, false));            \
        op##bits(cpu, a, (uint##bits##_t)i->imm);                                                  \
    }                                                                                              \
    static void name##bits##_acc_imm(struct soft_cpu *cpu, const struct insn *i)                   \
    {                                                                                              \
        op##bits(cpu, get##bits(cpu, i, 0), (uint##bits##_t)i->imm);                               \
    }

#define WRITING_ALL(op)                                                                            \
    WRITING(op, 8)                                                                                 \
    WRITING(op, 16)                                                                                \
    WRITING(op, 32)                                                                                \
    WRITING(op, 64)
#define COMPARING_ALL(name, op)                                                                    \
    COMPARING(name, op, 8)                                                                         \
    COMPARING(name, op, 16)                                                                        \
    COMPARING(name, op, 32)                                                                        \
    COMPARING(name, op, 64)

WRITING_ALL(add)
WRITING_ALL(or)
WRITING_ALL(adc)
WRITING_ALL(sbb)
WRITING_ALL(and)
WRITING_ALL(sub)
WRITING_ALL(xor)
COMPARING_ALL(cmp, sub)
COMPARING_ALL(test, and)

enum place {
    REG_REG,
    REG_MEM,
    RM_REG,
    MEM_REG,
    RM_IMM,
    MEM_IMM,
    ACC_IMM,
    LOCK_REG,
    LOCK_IMM,
    PLACES,
};

#define PLACES_OF(op, bits)                                                                        \
    [REG_REG] = op##bits##_reg_reg, [REG_MEM] = op##bits##_reg_mem, [RM_REG] = op##bits##_rm_reg,  \
    [MEM_REG] = op##bits##_mem_reg, [RM_IMM] = op##bits##_rm_imm, [MEM_IMM] = op##bits##_mem_imm,  \
    [ACC_IMM] = op##bits##_acc_imm
#define WITH_LOCK(op, bits)                                                                        \
    {                                                                                              \
        PLACES_OF(op, bits), [LOCK_REG] = op##bits##_lock_reg, [LOCK_IMM] = op##bits##_lock_imm    \
    }
#define WITHOUT_LOCK(op, bits)                                                                     \
    {                                                                                              \
        PLACES_OF(op, bits)                                                                        \
    }

static soft_exec_fn *const two_operands[][4][PLACES] = {
    [OP_ADD] = {WITH_LOCK(add,     8), WITH_LOCK(add,     16), WITH_LOCK(add,     32), WITH_LOCK(add, 64)},
    [OP_OR] = {WITH_LOCK(or,      8), WITH_LOCK(or,      16), WITH_LOCK(or,      32), WITH_LOCK(or,  64)},
    [OP_ADC] = {WITH_LOCK(adc,     8), WITH_LOCK(adc,     16), WITH_LOCK(adc,     32), WITH_LOCK(adc, 64)},
    [OP_SBB] = {WITH_LOCK(sbb,     8), WITH_LOCK(sbb,     16), WITH_LOCK(sbb,     32), WITH_LOCK(sbb, 64)},
    [OP_AND] = {WITH_LOCK(and,     8), WITH_LOCK(and,     16), WITH_LOCK(and,     32), WITH_LOCK(and, 64)},
    [OP_SUB] = {WITH_LOCK(sub,     8), WITH_LOCK(sub,     16), WITH_LOCK(sub,     32), WITH_LOCK(sub, 64)},
    [OP_XOR] = {WITH_LOCK(xor,     8), WITH_LOCK(xor,     16), WITH_LOCK(xor,     32), WITH_LOCK(xor, 64)},
    [OP_CMP] = {WITHOUT_LOCK(cmp,  8), WITHOUT_LOCK(cmp,  16), WITHOUT_LOCK(cmp,  32),
                WITHOUT_LOCK(cmp,                                                                     64)},
    [OP_TEST] = {WITHOUT_LOCK(test, 8), WITHOUT_LOCK(test, 16), WITHOUT_LOCK(test, 32),
                WITHOUT_LOCK(test,                                                                    64)},
};

static soft_exec_fn *bind_two_operands(const struct insn *insn)
{
    soft_exec_fn *const *places = two_operands[insn->op][size_index(insn->op_bytes)];
    bool lock = insn->prefixes & PREFIX_LOCK;
    switch (insn->opcode->form) {
    case FORM_REG_RM:
        return places[insn->is_mem ? REG_MEM : REG_REG];
    case FORM_RM_REG:
        return places[!insn->is_mem ? RM_REG : lock ? LOCK_REG : MEM_REG];
    case FORM_RM:
        return places[!insn->is_mem ? RM_IMM : lock ? LOCK_IMM : MEM_IMM];
    case FORM_ACC:
        return places[ACC_IMM];
    default:
        return NULL;
    }
}

/* --- one operand --- */

/* INC and DEC leave CF; NOT leaves all. */
#define UNARY(name, mnemonic, mask, bits, suffix)                                                  \
    static inline uint##bits##_t name##bits(struct soft_cpu *cpu, uint##bits##_t a)                \
    {                                                                                              \
        uint16_t ax;                                                                               \
        __asm__(mnemonic suffix " %1\n\t" HOST_FLAGS : "=&a"(ax), "+r"(a) : : "cc");               \
        set_some_flags(cpu, ax, mask);                                                             \
        return a;                                                                                  \
    }                                                                                              \
    static void name##bits##_reg(struct soft_cpu *cpu, const struct insn *i)                       \
    {                                                                                              \
        put##bits(cpu, i, i->rm, name##bits(cpu, get##bits(cpu, i, i->rm)));                       \
    }                                                                                              \
    static void name##bits##_mem(struct soft_cpu *cpu, const struct insn *i)                       \
    {                                                                                              \
        uint64_t la = insn_linear(cpu, i, (bits) / 8, true);                                       \
        uint##bits##_t a = mmu_read_for_write##bits(cpu, la);                                      \
        mmu_write##bits(cpu, la, name##bits(cpu, a));                                              \
    }                                                                                              \
    static uint64_t name##bits##_modify(struct soft_cpu *cpu, uint64_t old, const struct insn *i,  \
                                        uint64_t operand)                                          \
    {                                                                                              \
        (void)i;                                                                                   \
        (void)operand;                                                                             \
        return name##bits(cpu, (uint##bits##_t)old);                                               \
    }                                                                                              \
    static void name##bits##_lock(struct soft_cpu *cpu, const struct insn *i)                      \
    {                                                                                              \
        int_locked(cpu, i, insn_linear(cpu, i, (bits) / 8, true), (bits) / 8, name##bits##_modify, \
                   0);                                                                             \
    }

#define UNARY_ALL(name, mnemonic, mask)                                                            \
    UNARY(name, mnemonic, mask, 8, "b")                                                            \
    UNARY(name, mnemonic, mask, 16, "w")                                                           \
    UNARY(name, mnemonic, mask, 32, "l")                                                           \
    UNARY(name, mnemonic, mask, 64, "q")

UNARY_ALL(inc, "inc", RFLAGS_ARITH & ~RFLAGS_CF)
UNARY_ALL(dec, "dec", RFLAGS_ARITH & ~RFLAGS_CF)
UNARY_ALL(neg, "neg", RFLAGS_ARITH)
UNARY_ALL(not, "not", 0ULL)

#define ONE(name, bits)                                                                            \
    {                                                                                              \
        name##bits##_reg, name##bits##_mem, name##bits##_lock                                      \
    }
#define ONE_ALL(name)                                                                              \
    {                                                                                              \
        ONE(name, 8), ONE(name, 16), ONE(name, 32), ONE(name, 64)                                  \
    }

static soft_exec_fn *const one_operand[][4][3] = {
    [OP_INC] = ONE_ALL(inc),
    [OP_DEC] = ONE_ALL(dec),
    [OP_NEG] = ONE_ALL(neg),
    [OP_NOT] = ONE_ALL(not ),
};

soft_exec_fn *alu_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_ADD:
    case OP_OR:
    case OP_ADC:
    case OP_SBB:
    case OP_AND:
    case OP_SUB:
    case OP_XOR:
    case OP_CMP:
    case OP_TEST:
        return bind_two_operands(insn);
    case OP_INC:
    case OP_DEC:
    case OP_NEG:
    case OP_NOT:
        return one_operand[insn->op][size_index(insn->op_bytes)][!insn->is_mem ? 0
                                                                 : insn->prefixes & PREFIX_LOCK
                                                                     ? 2
                                                                     : 1];
    default:
        return NULL;
    }
}

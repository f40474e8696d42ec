/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shifts, rotates and bit instructions, done by the host's own instruction with the guest's flags
 * where those are an input. A count of zero (after masking) leaves flags alone.
 */
#include "engine/soft/exec_int.h"

/* --- shifts and rotates --- */

/* Flags in: CF by BT. The host masks the count as the guest's processor does. */
#define SHIFT(name, mnemonic, bits, suffix)                                                        \
    static uint64_t name##bits(uint64_t value, uint8_t count, uint64_t flags,                      \
                               uint16_t *host_flags)                                               \
    {                                                                                              \
        uint##bits##_t v = (uint##bits##_t)value;                                                  \
        uint16_t ax;                                                                               \
        __asm__("btl $0, %3\n\t" mnemonic suffix " %%cl, %1\n\t" HOST_FLAGS                        \
                : "=&a"(ax), "+r"(v)                                                               \
                : "c"(count), "r"((uint32_t)flags)                                                 \
                : "cc");                                                                           \
        *host_flags = ax;                                                                          \
        return v;                                                                                  \
    }
#define SHIFT_ALL(name, mnemonic)                                                                  \
    SHIFT(name, mnemonic, 8, "b")                                                                  \
    SHIFT(name, mnemonic, 16, "w")                                                                 \
    SHIFT(name, mnemonic, 32, "l")                                                                 \
    SHIFT(name, mnemonic, 64, "q")

SHIFT_ALL(rol, "rol")
SHIFT_ALL(ror, "ror")
SHIFT_ALL(rcl, "rcl")
SHIFT_ALL(rcr, "rcr")
SHIFT_ALL(shl, "shl")
SHIFT_ALL(shr, "shr")
SHIFT_ALL(sar, "sar")

typedef uint64_t shift_fn(uint64_t value, uint8_t count, uint64_t flags, uint16_t *host_flags);

#define WIDTHS(name)                                                                               \
    {                                                                                              \
        name##8, name##16, name##32, name##64                                                      \
    }

static shift_fn *const shifts[][4] = {WIDTHS(rol), WIDTHS(ror), WIDTHS(rcl), WIDTHS(rcr),
                                      WIDTHS(shl), WIDTHS(shr), WIDTHS(sar)};

#define ROTATES 4 /* the first four: CF and OF alone */

/* rotated: the flags of a rotate. */
static void shift_by(struct soft_cpu *cpu, const struct insn *i, unsigned kind, uint8_t count,
                     uint64_t rotated)
{
    unsigned bytes = i->op_bytes;
    uint64_t la;
    uint64_t value = int_get_rm_for_write(cpu, i, bytes, &la);
    uint16_t host_flags;
    count &= bytes == 8 ? 63 : 31;
    if (count == 0) {
        /* The destination is written: a 32-bit register is extended. */
        int_put_rm_at(cpu, i, bytes, la, value);
        return;
    }
    value = shifts[kind][size_index(bytes)](value, count, cpu->rflags, &host_flags);
    int_put_rm_at(cpu, i, bytes, la, value);
    set_some_flags(cpu, host_flags, kind < ROTATES ? rotated : RFLAGS_ARITH);
}

/* Where OF is undefined, after a rotate by more than 1, some processors do otherwise by an
 * immediate than they do by CL: it stays, as it does in translated code with `exact`
 * (kept_flags()). */
static void shift_imm(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t overflow = insn_flags(i, INSN_COUNT_UNKNOWN).written & RFLAGS_OF;
    shift_by(cpu, i, (unsigned)(i->op - OP_ROL), (uint8_t)i->imm, RFLAGS_CF | overflow);
}

static void shift_cl(struct soft_cpu *cpu, const struct insn *i)
{
    shift_by(cpu, i, (unsigned)(i->op - OP_ROL_CL), (uint8_t)cpu->gpr[CPU_RCX],
             RFLAGS_CF | RFLAGS_OF);
}

/* The hot ones: a register of 32 or 64 bits by an immediate that is not zero. */
#define QUICK(name, bits)                                                                          \
    static void name##bits##_quick(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        uint16_t host_flags;                                                                       \
        uint64_t value = name##bits(cpu->gpr[i->rm], (uint8_t)i->imm, 0, &host_flags);             \
        cpu->gpr[i->rm] = value;                                                                   \
        set_flags(cpu, host_flags);                                                                \
    }
QUICK(shl, 32)
QUICK(shl, 64)
QUICK(shr, 32)
QUICK(shr, 64)
QUICK(sar, 32)
QUICK(sar, 64)

static soft_exec_fn *bind_shift_imm(const struct insn *insn)
{
    bool wide = insn->op_bytes == 8;
    if (insn->is_mem || insn->op_bytes < 4 || (insn->imm & (wide ? 63 : 31)) == 0)
        return shift_imm;
    switch (insn->op) {
    case OP_SHL:
        return wide ? shl64_quick : shl32_quick;
    case OP_SHR:
        return wide ? shr64_quick : shr32_quick;
    case OP_SAR:
        return wide ? sar64_quick : sar32_quick;
    default:
        return shift_imm;
    }
}

/* --- double shifts --- */

#define DOUBLE(name, mnemonic, bits, suffix)                                                       \
    static uint64_t name##bits(uint64_t value, uint64_t other, uint8_t count,                      \
                               uint16_t *host_flags)                                               \
    {                                                                                              \
        uint##bits##_t v = (uint##bits##_t)value;                                                  \
        uint16_t ax;                                                                               \
        __asm__(mnemonic suffix " %%cl, %3, %1\n\t" HOST_FLAGS                                     \
                : "=&a"(ax), "+r"(v)                                                               \
                : "c"(count), "r"((uint##bits##_t)other)                                           \
                : "cc");                                                                           \
        *host_flags = ax;                                                                          \
        return v;                                                                                  \
    }
DOUBLE(shld, "shld", 16, "w")
DOUBLE(shld, "shld", 32, "l")
DOUBLE(shld, "shld", 64, "q")
DOUBLE(shrd, "shrd", 16, "w")
DOUBLE(shrd, "shrd", 32, "l")
DOUBLE(shrd, "shrd", 64, "q")

typedef uint64_t double_fn(uint64_t value, uint64_t other, uint8_t count, uint16_t *host_flags);

static void double_shift(struct soft_cpu *cpu, const struct insn *i)
{
    static double_fn *const functions[2][3] = {
        {shld16, shld32, shld64},
        {shrd16, shrd32, shrd64}
    };
    unsigned bytes = i->op_bytes;
    bool right = i->op == OP_SHRD || i->op == OP_SHRD_CL;
    bool by_cl = i->op == OP_SHLD_CL || i->op == OP_SHRD_CL;
    uint8_t count = by_cl ? (uint8_t)cpu->gpr[CPU_RCX] : (uint8_t)i->imm;
    uint64_t la;
    uint64_t value = int_get_rm_for_write(cpu, i, bytes, &la);
    uint16_t host_flags;
    count &= bytes == 8 ? 63 : 31;
    if (count == 0) {
        int_put_rm_at(cpu, i, bytes, la, value);
        return;
    }
    value = functions[right][size_index(bytes) - 1](value, int_get_reg(cpu, i, i->reg, bytes),
                                                    count, &host_flags);
    int_put_rm_at(cpu, i, bytes, la, value);
    set_flags(cpu, host_flags);
}

/* --- BT, BTS, BTR, BTC --- */

enum bit_action {
    BIT_TEST,
    BIT_SET,
    BIT_RESET,
    BIT_COMPLEMENT,
};

static enum bit_action bit_action_of(const struct insn *i)
{
    return (enum bit_action)((i->op - OP_BT) % 4);
}

static uint64_t bit_apply(enum bit_action action, uint64_t value, uint64_t mask)
{
    switch (action) {
    case BIT_SET:
        return value | mask;
    case BIT_RESET:
        return value & ~mask;
    case BIT_COMPLEMENT:
        return value ^ mask;
    default:
        return value;
    }
}

/* operand: the mask */
static uint64_t modify_bit(struct soft_cpu *cpu, uint64_t old, const struct insn *i,
                           uint64_t operand)
{
    set_flag(cpu, RFLAGS_CF, old & operand);
    return bit_apply(bit_action_of(i), old, operand);
}

/* A bit number in a register reaches outside of a memory operand: signed, by whole operands. */
static uint64_t bit_linear(struct soft_cpu *cpu, const struct insn *i, int64_t number, bool write)
{
    unsigned bytes = i->op_bytes;
    uint64_t offset = insn_offset(cpu, i);
    unsigned shift = size_index(bytes) + 3;
    offset += (uint64_t)((number >> shift) * (int64_t)bytes);
    return soft_linear(cpu, i->seg, offset & insn_addr_mask(i), bytes, write);
}

static int64_t signed_of(uint64_t value, unsigned bytes)
{
    unsigned shift = 64 - 8 * bytes;
    return (int64_t)(value << shift) >> shift;
}

static void bit_test(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    bool imm = i->op >= OP_BT_IMM;
    enum bit_action action = bit_action_of(i);
    int64_t number = imm ? (int64_t)(i->imm & (8 * bytes - 1))
                         : signed_of(int_get_reg(cpu, i, i->reg, bytes), bytes);
    uint64_t mask = 1ULL << ((uint64_t)number & (8 * bytes - 1));
    if (!i->is_mem) {
        uint64_t value = int_get_reg(cpu, i, i->rm, bytes);
        uint64_t result = modify_bit(cpu, value, i, mask);
        if (action != BIT_TEST)
            int_put_reg(cpu, i, i->rm, bytes, result);
        return;
    }
    uint64_t la = bit_linear(cpu, i, number, action != BIT_TEST);
    if (action == BIT_TEST)
        set_flag(cpu, RFLAGS_CF, mmu_read_sized(cpu, la, bytes) & mask);
    else if (i->prefixes & PREFIX_LOCK)
        int_locked(cpu, i, la, bytes, modify_bit, mask);
    else
        mmu_write_sized(cpu, la, bytes,
                        modify_bit(cpu, mmu_read_for_write_sized(cpu, la, bytes), i, mask));
}

/* --- scans and counts --- */

/* With the host's instruction. A
 * destination that is left alone where the source is zero is an input, too. */
#define SCAN(name, mnemonic, bits, suffix)                                                         \
    static uint64_t name##bits(uint64_t source, uint64_t destination, uint16_t *host_flags)        \
    {                                                                                              \
        uint##bits##_t d = (uint##bits##_t)destination;                                            \
        uint16_t ax;                                                                               \
        __asm__(mnemonic suffix " %2, %1\n\t" HOST_FLAGS                                           \
                : "=&a"(ax), "+r"(d)                                                               \
                : "r"((uint##bits##_t)source)                                                      \
                : "cc");                                                                           \
        *host_flags = ax;                                                                          \
        return d;                                                                                  \
    }
#define SCAN_ALL(name, mnemonic)                                                                   \
    SCAN(name, mnemonic, 16, "w")                                                                  \
    SCAN(name, mnemonic, 32, "l")                                                                  \
    SCAN(name, mnemonic, 64, "q")

SCAN_ALL(bsf, "bsf")
SCAN_ALL(bsr, "bsr")
SCAN_ALL(tzcnt, "tzcnt")
SCAN_ALL(lzcnt, "lzcnt")
SCAN_ALL(popcnt, "popcnt")

typedef uint64_t scan_fn(uint64_t source, uint64_t destination, uint16_t *host_flags);

#define SCAN_WIDTHS(name)                                                                          \
    {                                                                                              \
        name##16, name##32, name##64                                                               \
    }

/* Flags that are undefined stay as they are: the host may leave its own. */
static uint64_t scan_flags(const struct insn *i)
{
    switch (i->op) {
    case OP_BSF:
    case OP_BSR:
        return RFLAGS_ZF;
    case OP_TZCNT:
    case OP_LZCNT:
        return RFLAGS_ZF | RFLAGS_CF;
    default:
        return RFLAGS_ARITH;
    }
}

/* BSF and BSR of zero leave all 64 bits of the destination (as AMD documents and Intel does). */
static void scan(struct soft_cpu *cpu, const struct insn *i)
{
    static scan_fn *const functions[][3] = {SCAN_WIDTHS(bsf), SCAN_WIDTHS(bsr), SCAN_WIDTHS(tzcnt),
                                            SCAN_WIDTHS(lzcnt), SCAN_WIDTHS(popcnt)};
    unsigned bytes = i->op_bytes;
    uint64_t source = int_get_rm(cpu, i, bytes);
    uint16_t host_flags;
    uint64_t result = functions[i->op - OP_BSF][size_index(bytes) - 1](
        source, int_get_reg(cpu, i, i->reg, bytes), &host_flags);
    if (source != 0 || i->op >= OP_TZCNT)
        int_put_reg(cpu, i, i->reg, bytes, result);
    set_some_flags(cpu, host_flags, scan_flags(i));
}

soft_exec_fn *shift_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_ROL:
    case OP_ROR:
    case OP_RCL:
    case OP_RCR:
    case OP_SHL:
    case OP_SHR:
    case OP_SAR:
        return bind_shift_imm(insn);
    case OP_ROL_CL:
    case OP_ROR_CL:
    case OP_RCL_CL:
    case OP_RCR_CL:
    case OP_SHL_CL:
    case OP_SHR_CL:
    case OP_SAR_CL:
        return shift_cl;
    case OP_SHLD:
    case OP_SHRD:
    case OP_SHLD_CL:
    case OP_SHRD_CL:
        return double_shift;
    default:
        return NULL;
    }
}

soft_exec_fn *bit_bind(const struct insn *insn)
{
    if (insn->op >= OP_BT && insn->op <= OP_BTC_IMM)
        return bit_test;
    if (insn->op >= OP_BSF && insn->op <= OP_POPCNT)
        return scan;
    return NULL;
}

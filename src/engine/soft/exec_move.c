/* SPDX-License-Identifier: Apache-2.0 */
/* Moves: between registers and memory, to and from the stack, exchanges, compare-and-exchange. */
#include "engine/soft/exec_int.h"

/* --- MOV, MOVZX, MOVSX, LEA --- */

#define MOVES(bits)                                                                                \
    static void mov##bits##_reg_reg(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        put##bits(cpu, i, i->reg, get##bits(cpu, i, i->rm));                                       \
    }                                                                                              \
    static void mov##bits##_rm_reg(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        put##bits(cpu, i, i->rm, get##bits(cpu, i, i->reg));                                       \
    }                                                                                              \
    static void mov##bits##_load(struct soft_cpu *cpu, const struct insn *i)                       \
    {                                                                                              \
        put##bits(cpu, i, i->reg, mmu_read##bits(cpu, insn_linear(cpu, i, (bits) / 8, false)));    \
    }                                                                                              \
    static void mov##bits##_store(struct soft_cpu *cpu, const struct insn *i)                      \
    {                                                                                              \
        mmu_write##bits(cpu, insn_linear(cpu, i, (bits) / 8, true), get##bits(cpu, i, i->reg));    \
    }                                                                                              \
    static void mov##bits##_rm_imm(struct soft_cpu *cpu, const struct insn *i)                     \
    {                                                                                              \
        put##bits(cpu, i, i->rm, (uint##bits##_t)i->imm);                                          \
    }                                                                                              \
    static void mov##bits##_mem_imm(struct soft_cpu *cpu, const struct insn *i)                    \
    {                                                                                              \
        mmu_write##bits(cpu, insn_linear(cpu, i, (bits) / 8, true), (uint##bits##_t)i->imm);       \
    }                                                                                              \
    static void mov##bits##_acc_moffs(struct soft_cpu *cpu, const struct insn *i)                  \
    {                                                                                              \
        uint64_t la = soft_linear(cpu, i->seg, i->imm & insn_addr_mask(i), (bits) / 8, false);     \
        put##bits(cpu, i, 0, mmu_read##bits(cpu, la));                                             \
    }                                                                                              \
    static void mov##bits##_moffs_acc(struct soft_cpu *cpu, const struct insn *i)                  \
    {                                                                                              \
        uint64_t la = soft_linear(cpu, i->seg, i->imm & insn_addr_mask(i), (bits) / 8, true);      \
        mmu_write##bits(cpu, la, get##bits(cpu, i, 0));                                            \
    }
MOVES(8)
MOVES(16)
MOVES(32)
MOVES(64)

enum move {
    MOVE_REG_REG,
    MOVE_RM_REG,
    MOVE_LOAD,
    MOVE_STORE,
    MOVE_RM_IMM,
    MOVE_MEM_IMM,
    MOVE_ACC_MOFFS,
    MOVE_MOFFS_ACC,
    MOVES_COUNT,
};

#define MOVES_OF(bits)                                                                             \
    {                                                                                              \
        [MOVE_REG_REG] = mov##bits##_reg_reg, [MOVE_RM_REG] = mov##bits##_rm_reg,                  \
        [MOVE_LOAD] = mov##bits##_load, [MOVE_STORE] = mov##bits##_store,                          \
        [MOVE_RM_IMM] = mov##bits##_rm_imm, [MOVE_MEM_IMM] = mov##bits##_mem_imm,                  \
        [MOVE_ACC_MOFFS] = mov##bits##_acc_moffs, [MOVE_MOFFS_ACC] = mov##bits##_moffs_acc         \
    }

static soft_exec_fn *const moves[4][MOVES_COUNT] = {MOVES_OF(8), MOVES_OF(16), MOVES_OF(32),
                                                    MOVES_OF(64)};

static soft_exec_fn *bind_mov(const struct insn *insn)
{
    soft_exec_fn *const *by_place = moves[size_index(insn->op_bytes)];
    switch (insn->op) {
    case OP_MOV_MOFFS_LOAD:
        return by_place[MOVE_ACC_MOFFS];
    case OP_MOV_MOFFS_STORE:
        return by_place[MOVE_MOFFS_ACC];
    case OP_MOV_IMM:
        return by_place[insn->is_mem ? MOVE_MEM_IMM : MOVE_RM_IMM];
    default:
        break;
    }
    if (insn->opcode->form == FORM_REG_RM)
        return by_place[insn->is_mem ? MOVE_LOAD : MOVE_REG_REG];
    return by_place[insn->is_mem ? MOVE_STORE : MOVE_RM_REG];
}

/* Widening: the source is `from` bits, the destination as wide as the operand size. */
#define WIDEN(name, from, type, to)                                                                \
    static void name##from##_##to##_reg(struct soft_cpu *cpu, const struct insn *i)                \
    {                                                                                              \
        put##to(cpu, i, i->reg, (uint##to##_t)(type)get##from(cpu, i, i->rm));                     \
    }                                                                                              \
    static void name##from##_##to##_mem(struct soft_cpu *cpu, const struct insn *i)                \
    {                                                                                              \
        type value = (type)mmu_read##from(cpu, insn_linear(cpu, i, (from) / 8, false));            \
        put##to(cpu, i, i->reg, (uint##to##_t)value);                                              \
    }
WIDEN(movzx, 8, uint8_t, 16)
WIDEN(movzx, 8, uint8_t, 32)
WIDEN(movzx, 8, uint8_t, 64)
WIDEN(movzx, 16, uint16_t, 16)
WIDEN(movzx, 16, uint16_t, 32)
WIDEN(movzx, 16, uint16_t, 64)
WIDEN(movsx, 8, int8_t, 16)
WIDEN(movsx, 8, int8_t, 32)
WIDEN(movsx, 8, int8_t, 64)
WIDEN(movsx, 16, int16_t, 16)
WIDEN(movsx, 16, int16_t, 32)
WIDEN(movsx, 16, int16_t, 64)
WIDEN(movsx, 32, int32_t, 32)
WIDEN(movsx, 32, int32_t, 64)

/* MOVSXD without REX.W moves; with a 16-bit operand it takes 16 bits (SDM vol. 2, MOVSXD). */
static void movsxd_16(struct soft_cpu *cpu, const struct insn *i)
{
    put16(cpu, i, i->reg, (uint16_t)int_get_rm(cpu, i, 2));
}

#define WIDENINGS(name, from)                                                                      \
    {                                                                                              \
        {name##from##_16_reg, name##from##_16_mem}, {name##from##_32_reg, name##from##_32_mem},    \
        {                                                                                          \
            name##from##_64_reg, name##from##_64_mem                                               \
        }                                                                                          \
    }

static soft_exec_fn *bind_widen(const struct insn *insn)
{
    static soft_exec_fn *const tables[4][3][2] = {WIDENINGS(movzx, 8), WIDENINGS(movzx, 16),
                                                  WIDENINGS(movsx, 8), WIDENINGS(movsx, 16)};
    unsigned to = size_index(insn->op_bytes) - 1;
    switch (insn->op) {
    case OP_MOVZX8:
        return tables[0][to][insn->is_mem];
    case OP_MOVZX16:
        return tables[1][to][insn->is_mem];
    case OP_MOVSX8:
        return tables[2][to][insn->is_mem];
    case OP_MOVSX16:
        return tables[3][to][insn->is_mem];
    default:
        break;
    }
    if (insn->op_bytes == 2)
        return movsxd_16;
    if (insn->op_bytes == 4)
        return insn->is_mem ? movsx32_32_mem : movsx32_32_reg;
    return insn->is_mem ? movsx32_64_mem : movsx32_64_reg;
}

static void lea16(struct soft_cpu *cpu, const struct insn *i)
{
    put16(cpu, i, i->reg, (uint16_t)insn_offset(cpu, i));
}

static void lea32(struct soft_cpu *cpu, const struct insn *i)
{
    put32(cpu, i, i->reg, (uint32_t)insn_offset(cpu, i));
}

static void lea64(struct soft_cpu *cpu, const struct insn *i)
{
    put64(cpu, i, i->reg, insn_offset(cpu, i));
}

static soft_exec_fn *bind_lea(const struct insn *insn)
{
    return insn->op_bytes == 2 ? lea16 : insn->op_bytes == 4 ? lea32 : lea64;
}

/* --- CMOVcc, SETcc --- */

#define CMOV(bits)                                                                                 \
    static void cmov##bits(struct soft_cpu *cpu, const struct insn *i)                             \
    {                                                                                              \
        uint##bits##_t value = (uint##bits##_t)int_get_rm(cpu, i, (bits) / 8);                     \
        if (condition(cpu->rflags, i->opcode_byte))                                                \
            put##bits(cpu, i, i->reg, value);                                                      \
        else if ((bits) == 32) /* the upper half is cleared all the same */                        \
            cpu->gpr[i->reg] = (uint32_t)cpu->gpr[i->reg];                                         \
    }
CMOV(16)
CMOV(32)
CMOV(64)

static soft_exec_fn *bind_cmov(const struct insn *insn)
{
    return insn->op_bytes == 2 ? cmov16 : insn->op_bytes == 4 ? cmov32 : cmov64;
}

static void setcc(struct soft_cpu *cpu, const struct insn *i)
{
    int_put_rm(cpu, i, 1, condition(cpu->rflags, i->opcode_byte));
}

/* --- exchanges --- */

static uint64_t modify_replace(struct soft_cpu *cpu, uint64_t old, const struct insn *insn,
                               uint64_t operand)
{
    (void)cpu;
    (void)old;
    (void)insn;
    return operand;
}

/* With memory it is locked whatever the prefixes. FORM_OPREG exchanges with rAX. */
static void xchg(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    unsigned reg = i->opcode->form == FORM_OPREG ? CPU_RAX : i->reg;
    uint64_t value = int_get_reg(cpu, i, reg, bytes);
    if (i->is_mem) {
        uint64_t la = insn_linear(cpu, i, bytes, true);
        int_put_reg(cpu, i, reg, bytes, int_locked(cpu, i, la, bytes, modify_replace, value));
        return;
    }
    int_put_reg(cpu, i, reg, bytes, int_get_reg(cpu, i, i->rm, bytes));
    int_put_reg(cpu, i, i->rm, bytes, value);
}

/* Flags as by ADD (CMP): through the arithmetic of that operation. */
#define SUM_FLAGS(name, mnemonic, bits, suffix)                                                    \
    static uint64_t name##bits(struct soft_cpu *cpu, uint64_t a, uint64_t b)                       \
    {                                                                                              \
        uint16_t ax;                                                                               \
        uint##bits##_t value = (uint##bits##_t)a;                                                  \
        __asm__(mnemonic suffix " %2, %1\n\t" HOST_FLAGS                                           \
                : "=&a"(ax), "+r"(value)                                                           \
                : "r"((uint##bits##_t)b)                                                           \
                : "cc");                                                                           \
        set_flags(cpu, ax);                                                                        \
        return value;                                                                              \
    }
SUM_FLAGS(sum, "add", 8, "b")
SUM_FLAGS(sum, "add", 16, "w")
SUM_FLAGS(sum, "add", 32, "l")
SUM_FLAGS(sum, "add", 64, "q")
SUM_FLAGS(difference, "sub", 8, "b")
SUM_FLAGS(difference, "sub", 16, "w")
SUM_FLAGS(difference, "sub", 32, "l")
SUM_FLAGS(difference, "sub", 64, "q")

typedef uint64_t arithmetic_fn(struct soft_cpu *cpu, uint64_t a, uint64_t b);
static arithmetic_fn *const sums[4] = {sum8, sum16, sum32, sum64};
static arithmetic_fn *const differences[4] = {difference8, difference16, difference32,
                                              difference64};

static uint64_t modify_add(struct soft_cpu *cpu, uint64_t old, const struct insn *i,
                           uint64_t operand)
{
    return sums[size_index(i->op_bytes)](cpu, old, operand);
}

static void xadd(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t source = int_get_reg(cpu, i, i->reg, bytes);
    uint64_t la, old;
    if (i->is_mem && i->prefixes & PREFIX_LOCK) {
        la = insn_linear(cpu, i, bytes, true);
        old = int_locked(cpu, i, la, bytes, modify_add, source);
        int_put_reg(cpu, i, i->reg, bytes, old);
        return;
    }
    old = int_get_rm_for_write(cpu, i, bytes, &la);
    uint64_t sum = modify_add(cpu, old, i, source);
    if (i->is_mem) {
        int_put_rm_at(cpu, i, bytes, la, sum);
        int_put_reg(cpu, i, i->reg, bytes, old);
    } else { /* with one register twice the sum stays */
        int_put_reg(cpu, i, i->reg, bytes, old);
        int_put_reg(cpu, i, i->rm, bytes, sum);
    }
}

/* What goes back to memory: the source where the accumulator was equal, else what was there. */
static uint64_t modify_compare(struct soft_cpu *cpu, uint64_t old, const struct insn *i,
                               uint64_t operand)
{
    unsigned bytes = i->op_bytes;
    differences[size_index(bytes)](cpu, int_get_reg(cpu, i, CPU_RAX, bytes), old);
    return cpu->rflags & RFLAGS_ZF ? operand : old;
}

static void cmpxchg(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t source = int_get_reg(cpu, i, i->reg, bytes);
    uint64_t la = 0, old;
    if (i->is_mem && i->prefixes & PREFIX_LOCK) {
        la = insn_linear(cpu, i, bytes, true);
        old = int_locked(cpu, i, la, bytes, modify_compare, source);
    } else {
        old = int_get_rm_for_write(cpu, i, bytes, &la);
        uint64_t value = modify_compare(cpu, old, i, source);
        /* A 32-bit register destination is written, and so extended, only when equal. */
        if (i->is_mem || cpu->rflags & RFLAGS_ZF)
            int_put_rm_at(cpu, i, bytes, la, value);
    }
    if (!(cpu->rflags & RFLAGS_ZF))
        int_put_reg(cpu, i, CPU_RAX, bytes, old);
}

static uint64_t modify_compare8b(struct soft_cpu *cpu, uint64_t old, const struct insn *i,
                                 uint64_t operand)
{
    uint64_t expected = (uint32_t)cpu->gpr[CPU_RAX] | cpu->gpr[CPU_RDX] << 32;
    (void)i;
    set_flag(cpu, RFLAGS_ZF, old == expected);
    return old == expected ? operand : old;
}

/* Without LOCK it is done in one step all the same: nothing can tell. */
static void cmpxchg8b(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t source = (uint32_t)cpu->gpr[CPU_RBX] | cpu->gpr[CPU_RCX] << 32;
    uint64_t la = insn_linear(cpu, i, 8, true);
    uint64_t old = int_locked(cpu, i, la, 8, modify_compare8b, source);
    if (!(cpu->rflags & RFLAGS_ZF)) {
        cpu->gpr[CPU_RAX] = (uint32_t)old;
        cpu->gpr[CPU_RDX] = old >> 32;
    }
}

static void cmpxchg16b(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t la = insn_linear(cpu, i, 16, true);
    if (la & 15)
        soft_raise_error(cpu, EXC_GP, 0);
    uint8_t *host = mmu_lock(cpu, la, 16);
    uint64_t low = cpu->gpr[CPU_RAX], high = cpu->gpr[CPU_RDX];
    bool equal;
    if (host) {
        __asm__ volatile("lock cmpxchg16b (%3)"
                         : "=@ccz"(equal), "+a"(low), "+d"(high)
                         : "r"(host), "b"(cpu->gpr[CPU_RBX]), "c"(cpu->gpr[CPU_RCX])
                         : "memory");
        mmu_lock_done(cpu, la, 16);
    } else {
        uint64_t value[2];
        mmu_check(cpu, la, 16, true);
        soft_exclusive_begin(cpu);
        mmu_read_bytes(cpu, la, value, 16);
        equal = value[0] == low && value[1] == high;
        low = value[0];
        high = value[1];
        if (equal) {
            value[0] = cpu->gpr[CPU_RBX];
            value[1] = cpu->gpr[CPU_RCX];
        }
        mmu_write_bytes(cpu, la, value, 16);
        soft_exclusive_end(cpu);
    }
    set_flag(cpu, RFLAGS_ZF, equal);
    if (!equal) {
        cpu->gpr[CPU_RAX] = low;
        cpu->gpr[CPU_RDX] = high;
    }
}

/* --- the stack --- */

static void push64_reg(struct soft_cpu *cpu, const struct insn *i)
{
    soft_push(cpu, 8, cpu->gpr[i->rm]);
}

static void pop64_reg(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = soft_peek(cpu, 8, 0);
    cpu->gpr[CPU_RSP] += 8;
    cpu->gpr[i->rm] = value;
}

static void push(struct soft_cpu *cpu, const struct insn *i)
{
    soft_push(cpu, i->op_bytes, int_get_rm(cpu, i, i->op_bytes));
}

static void push_imm(struct soft_cpu *cpu, const struct insn *i)
{
    soft_push(cpu, i->op_bytes, i->imm);
}

/* The address of a memory operand is computed with the stack pointer already moved; where the write
 * faults it must be back. */
static void pop(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t value = soft_peek(cpu, bytes, 0);
    uint64_t rsp = cpu->gpr[CPU_RSP];
    if (!i->is_mem) {
        soft_drop(cpu, bytes);
        int_put_reg(cpu, i, i->rm, bytes, value);
        return;
    }
    soft_drop(cpu, bytes);
    uint64_t moved = cpu->gpr[CPU_RSP];
    uint64_t offset = insn_offset(cpu, i);
    cpu->gpr[CPU_RSP] = rsp;
    mmu_write_sized(cpu, soft_linear(cpu, i->seg, offset, bytes, true), bytes, value);
    cpu->gpr[CPU_RSP] = moved;
}

static void pusha(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t rsp = cpu->gpr[CPU_RSP];
    /* All or nothing: the lowest and the highest of the eight are in at most two pages. */
    for (unsigned n = 1; n <= 8; n++)
        mmu_check(cpu,
                  soft_linear(cpu, SEG_SS, (rsp - (uint64_t)n * bytes) & soft_stack_mask(cpu),
                              bytes, true),
                  bytes, true);
    for (unsigned n = 0; n < 8; n++)
        soft_push(cpu, bytes, n == CPU_RSP ? rsp : cpu->gpr[n]);
}

static void popa(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t values[8];
    for (unsigned n = 0; n < 8; n++)
        values[n] = soft_peek(cpu, bytes, n * bytes);
    for (unsigned n = 0; n < 8; n++) {
        unsigned reg = 7 - n;
        if (reg != CPU_RSP)
            int_put_reg(cpu, i, reg, bytes, values[n]);
    }
    soft_drop(cpu, 8 * bytes);
}

/* An address of the stack, which an access of ENTER will use. */
static uint64_t frame_linear(struct soft_cpu *cpu, uint64_t address, unsigned bytes, bool write)
{
    uint64_t at = address & soft_stack_mask(cpu);
    soft_check_stack(cpu, at, bytes);
    return soft_linear(cpu, SEG_SS, at, bytes, write);
}

/* ENTER (SDM vol. 2): imm bytes of locals, imm2 levels of outer frames. The accesses are in the
 * processor's order: what has been pushed when one of them faults stays in
 * memory, and registers change only at the end. */
static void enter(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes, level = i->imm2 & 31;
    uint64_t rsp = cpu->gpr[CPU_RSP], rbp = cpu->gpr[CPU_RBP], frame = rsp - bytes;
    rsp -= bytes;
    mmu_write_sized(cpu, frame_linear(cpu, rsp, bytes, true), bytes, rbp);
    for (unsigned n = 1; n < level; n++) {
        uint64_t from = frame_linear(cpu, rbp - (uint64_t)n * bytes, bytes, false);
        uint64_t value = mmu_read_sized(cpu, from, bytes);
        rsp -= bytes;
        mmu_write_sized(cpu, frame_linear(cpu, rsp, bytes, true), bytes, value);
    }
    if (level > 0) {
        rsp -= bytes;
        mmu_write_sized(cpu, frame_linear(cpu, rsp, bytes, true), bytes, frame);
    }
    rsp -= i->imm & 0xffff;
    mmu_check(cpu, frame_linear(cpu, rsp, bytes, true), bytes, true);
    int_put_reg(cpu, i, CPU_RBP, bytes, frame);
    soft_set_rsp(cpu, rsp);
}

static void leave(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t saved_rsp = cpu->gpr[CPU_RSP];
    uint64_t mask = soft_stack_mask(cpu), at = cpu->gpr[CPU_RBP] & mask;
    soft_check_stack(cpu, at, bytes);
    uint64_t value = mmu_read_sized(cpu, soft_linear(cpu, SEG_SS, at, bytes, false), bytes);
    cpu->gpr[CPU_RSP] = saved_rsp;
    soft_set_rsp(cpu, cpu->gpr[CPU_RBP] + bytes);
    int_put_reg(cpu, i, CPU_RBP, bytes, value);
}

/* PUSHF: RF and VM read as zero. In virtual-8086 mode IOPL decides (SDM vol. 3, 20.2.7). */
static void pushf(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t image = (cpu->rflags & ~(RFLAGS_VM | RFLAGS_RF)) | RFLAGS_FIXED;
    if (cpu->mode.v86 && (cpu->rflags & RFLAGS_IOPL) != RFLAGS_IOPL) {
        if (!(cpu->cr4 & CR4_VME) || i->op_bytes != 2)
            soft_raise_error(cpu, EXC_GP, 0);
        image |= RFLAGS_IOPL;
        image = (image & ~RFLAGS_IF) | (cpu->rflags & RFLAGS_VIF ? RFLAGS_IF : 0);
    }
    soft_push(cpu, i->op_bytes, image);
}

#define POPF_ALWAYS (RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID)

/* In virtual-8086 mode with VME and IOPL below 3, IF stands for VIF (SDM vol. 2, POPF). */
static void popf_vme(struct soft_cpu *cpu, const struct insn *i)
{
    if (!(cpu->cr4 & CR4_VME) || i->op_bytes != 2)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t image = soft_peek(cpu, 2, 0);
    if ((image & RFLAGS_IF && cpu->rflags & RFLAGS_VIP) || image & RFLAGS_TF)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t mask = POPF_ALWAYS & 0xffff;
    cpu->rflags = (cpu->rflags & ~mask) | (image & mask);
    set_flag(cpu, RFLAGS_VIF, image & RFLAGS_IF);
}

static void popf(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->mode.v86 && (cpu->rflags & RFLAGS_IOPL) != RFLAGS_IOPL) {
        popf_vme(cpu, i);
    } else {
        uint64_t image = soft_peek(cpu, i->op_bytes, 0);
        uint64_t mask = POPF_ALWAYS;
        if (cpu->mode.cpl == 0 && !cpu->mode.v86)
            mask |= RFLAGS_IOPL;
        if (cpu->mode.cpl <= (cpu->rflags & RFLAGS_IOPL) >> 12)
            mask |= RFLAGS_IF;
        if (i->op_bytes == 2)
            mask &= 0xffff;
        cpu->rflags = ((cpu->rflags & ~mask) | (image & mask)) & ~RFLAGS_RF;
    }
    soft_drop(cpu, i->op_bytes);
    cpu->rip = soft_next_rip(cpu, i);
    soft_cpu_update(cpu);
}

/* --- others --- */

static void movbe(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    bool load = i->opcode->form == FORM_REG_RM;
    uint64_t value = load ? int_get_rm(cpu, i, bytes) : int_get_reg(cpu, i, i->reg, bytes);
    value = __builtin_bswap64(value) >> (64 - 8 * bytes);
    if (load)
        int_put_reg(cpu, i, i->reg, bytes, value);
    else
        int_put_rm(cpu, i, bytes, value);
}

static void bswap(struct soft_cpu *cpu, const struct insn *i)
{
    if (i->op_bytes == 8)
        cpu->gpr[i->rm] = __builtin_bswap64(cpu->gpr[i->rm]);
    else if (i->op_bytes == 4)
        cpu->gpr[i->rm] = __builtin_bswap32((uint32_t)cpu->gpr[i->rm]);
    else /* undefined; processors clear the word */
        soft_set_reg16(cpu, i->rm, 0);
}

static void movdir64b(struct soft_cpu *cpu, const struct insn *i)
{
    uint8_t line[64];
    uint64_t to = soft_linear(cpu, SEG_ES, cpu->gpr[i->reg] & insn_addr_mask(i), 64, true);
    if (to & 63)
        soft_raise_error(cpu, EXC_GP, 0);
    mmu_read_bytes(cpu, insn_linear(cpu, i, 64, false), line, 64);
    mmu_write_bytes(cpu, to, line, 64);
}

static void xlat(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t offset = (cpu->gpr[CPU_RBX] + (uint8_t)cpu->gpr[CPU_RAX]) & insn_addr_mask(i);
    uint8_t value = mmu_read8(cpu, soft_linear(cpu, i->seg, offset, 1, false));
    *(uint8_t *)&cpu->gpr[CPU_RAX] = value;
}

static soft_exec_fn *bind_push(const struct insn *insn)
{
    bool plain = !insn->is_mem && insn->op_bytes == 8;
    if (insn->op == OP_PUSH)
        return plain ? push64_reg : push;
    return plain ? pop64_reg : pop;
}

soft_exec_fn *move_bind(const struct insn *insn)
{
    static soft_exec_fn *const others[OP_INT_END] = {
        [OP_CMOVCC] = NULL,
        [OP_SETCC] = setcc,
        [OP_XCHG] = xchg,
        [OP_XADD] = xadd,
        [OP_CMPXCHG] = cmpxchg,
        [OP_CMPXCHG8B] = cmpxchg8b,
        [OP_CMPXCHG16B] = cmpxchg16b,
        [OP_PUSH_IMM] = push_imm,
        [OP_PUSHA] = pusha,
        [OP_POPA] = popa,
        [OP_ENTER] = enter,
        [OP_LEAVE] = leave,
        [OP_PUSHF] = pushf,
        [OP_POPF] = popf,
        [OP_MOVBE] = movbe,
        [OP_BSWAP] = bswap,
        [OP_MOVDIR64B] = movdir64b,
        [OP_XLAT] = xlat,
    };
    switch (insn->op) {
    case OP_MOV:
    case OP_MOV_IMM:
    case OP_MOV_MOFFS_LOAD:
    case OP_MOV_MOFFS_STORE:
    case OP_MOVNTI:
    case OP_MOVDIRI:
        return bind_mov(insn);
    case OP_MOVZX8:
    case OP_MOVZX16:
    case OP_MOVSX8:
    case OP_MOVSX16:
    case OP_MOVSXD:
        return bind_widen(insn);
    case OP_LEA:
        return bind_lea(insn);
    case OP_CMOVCC:
        return bind_cmov(insn);
    case OP_PUSH:
    case OP_POP:
        return bind_push(insn);
    default:
        return others[insn->op];
    }
}

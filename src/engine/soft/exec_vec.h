/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the vector and x87 handlers share: the state's fields, the gates (#UD, #NM, #MF) and the
 * frame that generated code works on.
 */
#ifndef HULL_ENGINE_SOFT_EXEC_VEC_H
#define HULL_ENGINE_SOFT_EXEC_VEC_H

#include <string.h>

#include "engine/soft/exec.h"
#include "engine/soft/stub.h"

#define MXCSR_FLAGS      0x3fu
#define MXCSR_MASKS      0x1f80u
#define MXCSR_MASK_SHIFT 7
#define MXCSR_UE         (1u << 4)
#define MXCSR_FTZ        (1u << 15)
#define MXCSR_VALID      0xffffu
#define MXCSR_INIT       0x1f80u

#define FCW_INIT         0x037fu
#define FCW_VALID        0x1f3fu /* bit 6 is always set beside them */
#define FCW_FIXED        0x0040u
#define FCW_MASKS        0x003fu
#define FSW_EXCEPTIONS   0x003fu
#define FSW_ES_B         0x8080u
#define FSW_TOP_SHIFT    11

/* Offsets in the legacy region: soft_fpu.x87. */
enum {
    X87_FCW = 0,
    X87_FSW = 2,
    X87_TAGS = 4, /* abridged: a bit for each physical register */
    X87_FOP = 6,
    X87_FIP = 8, /* outside of 64-bit code with the selector in bits 32-47 */
    X87_FDP = 16,
    X87_MXCSR = 24,
    X87_MXCSR_MASK = 28,
};

#define XCR0_YMM 6ULL

static inline uint16_t x87_get16(const struct soft_cpu *cpu, unsigned offset)
{
    uint16_t value;
    memcpy(&value, cpu->fpu.x87 + offset, sizeof(value));
    return value;
}

static inline void x87_put16(struct soft_cpu *cpu, unsigned offset, uint16_t value)
{
    memcpy(cpu->fpu.x87 + offset, &value, sizeof(value));
}

static inline uint64_t x87_get64(const struct soft_cpu *cpu, unsigned offset)
{
    uint64_t value;
    memcpy(&value, cpu->fpu.x87 + offset, sizeof(value));
    return value;
}

static inline void x87_put64(struct soft_cpu *cpu, unsigned offset, uint64_t value)
{
    memcpy(cpu->fpu.x87 + offset, &value, sizeof(value));
}

static inline uint32_t fpu_mxcsr(const struct soft_cpu *cpu)
{
    uint32_t value;
    memcpy(&value, cpu->fpu.x87 + X87_MXCSR, sizeof(value));
    return value;
}

static inline void fpu_set_mxcsr(struct soft_cpu *cpu, uint32_t value)
{
    memcpy(cpu->fpu.x87 + X87_MXCSR, &value, sizeof(value));
}

static inline unsigned x87_top(const struct soft_cpu *cpu)
{
    return x87_get16(cpu, X87_FSW) >> FSW_TOP_SHIFT & 7;
}

/* Registers that the code at hand can name. */
static inline unsigned vec_register_count(const struct soft_cpu *cpu)
{
    return soft_code64(cpu) ? 16 : 8;
}

/* --- gates --- */

static inline void gate_sse(struct soft_cpu *cpu)
{
    if (__builtin_expect((cpu->cr0 & (CR0_EM | CR0_TS)) || !(cpu->cr4 & CR4_OSFXSR), 0))
        soft_raise(cpu, cpu->cr0 & CR0_EM || !(cpu->cr4 & CR4_OSFXSR) ? EXC_UD : EXC_NM);
}

static inline void gate_avx(struct soft_cpu *cpu)
{
    if (__builtin_expect(!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & XCR0_YMM) != XCR0_YMM, 0))
        soft_raise(cpu, EXC_UD);
    if (__builtin_expect((cpu->cr0 & CR0_TS) != 0, 0))
        soft_raise(cpu, EXC_NM);
}

/*
 * A pending x87 exception at a waiting instruction: raises #MF, or where CR0.NE is 0 asserts FERR#
 * and returns false: the instruction is to be tried again (SDM vol. 3, 9.2.2: the processor stops
 * until an interrupt comes). With IGNNE# it may go on, and true is returned.
 */
bool x87_ready(struct soft_cpu *cpu, const struct insn *insn);

/* Set FSW.ES and B as FCW and the exception flags ask for. */
void x87_update_es(struct soft_cpu *cpu);
/* FNOP and the rest of D9 D0 apart, what only controls: FLDCW, FNSTCW, FNSTSW, FNCLEX, FNINIT, ...
 * The pointers do not tell of it. */
bool x87_is_control(const struct insn *insn);
/* FNINIT: the registers stay. */
void x87_init(struct soft_cpu *cpu);
/* MMX registers are the physical ones: TOP becomes 0, the slots follow. */
void mmx_rotate(struct soft_cpu *cpu);

/* Memory operands: mmu_read_bytes() and mmu_write_bytes() for what mostly lies in one page. */
static inline void vec_read(struct soft_cpu *cpu, uint64_t la, uint8_t *to, unsigned size)
{
    const uint8_t *host = mmu_fast(cpu, la, size, false);
    if (host)
        memcpy(to, host, size);
    else
        mmu_read_bytes(cpu, la, to, size);
}

static inline void vec_write(struct soft_cpu *cpu, uint64_t la, const uint8_t *from, unsigned size)
{
    uint8_t *host = mmu_fast(cpu, la, size, true);
    if (host)
        memcpy(host, from, size);
    else
        mmu_write_bytes(cpu, la, from, size);
}

/* Raise what a write would raise. */
static inline void vec_check_write(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    if (!mmu_fast(cpu, la, size, true))
        mmu_check(cpu, la, size, true);
}

/* --- by file --- */

soft_exec_fn *x87_bind(struct insn *insn);
soft_exec_fn *xsave_bind(const struct insn *insn);
soft_exec_fn *vec_move_bind(const struct insn *insn);
soft_exec_fn *vec_mask_bind(const struct insn *insn);

/* --- generated code --- */

/* What a piece of code reads and writes beside struct soft_fpu. */
struct vec_frame {
    uint8_t mem[32]; /* where the memory operand is copied */
    uint64_t gpr;    /* the general register; RAX in, RCX out of string instructions */
    uint64_t rdx;
    uint32_t mxcsr;      /* in: the guest's with all masked and no flag; out: with new flags */
    uint32_t unmasked;   /* exceptions after which nothing is written */
    uint32_t host_mxcsr; /* saved here meanwhile */
    uint16_t flags;      /* AH and AL of exec_int.h: flags_of_host() */
} __attribute__((aligned(32)));

/* reg .. imm_reg: 16 times the register's number; for a memory operand rm is its host address. */
typedef void vec_code_fn(struct soft_fpu *fpu, struct vec_frame *frame, uint64_t reg, uint64_t rm,
                         uint64_t v, uint64_t imm_reg);

static inline vec_code_fn *vec_code_of(const struct insn *insn)
{
    const uint8_t *code = stub_code + insn->stub;
    vec_code_fn *fn;
    memcpy(&fn, &code, sizeof(fn));
    return fn;
}

/* The opcode's map 1-3 (0F, 0F 38, 0F 3A), its prefix (0 none, 1 66, 2 F3, 3 F2) and VEX.W. */
struct vec_opcode {
    uint8_t map, pp;
    bool w;
};
struct vec_opcode vec_opcode_of(const struct insn *insn);

/* The handler of an instruction whose code there is no memory for: the VM cannot go on. */
void vec_no_memory(struct soft_cpu *cpu, const struct insn *insn);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x87: each instruction is run by the host's own FPU, between FXRSTOR and FXSAVE of the guest's
 * state: nothing is pending when it starts, and FNINIT drops what it leaves pending, so that the
 * host never takes an exception. The instructions that only move control words are done in C.
 *
 * In generated code: RDI is the state, RSI the frame, RCX the address of the memory operand.
 */
#include <stddef.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/stub.h"
#include "engine/soft/vm.h"

/* --- state --- */

static bool exception_pending(const struct soft_cpu *cpu)
{
    return x87_get16(cpu, X87_FSW) & ~x87_get16(cpu, X87_FCW) & FSW_EXCEPTIONS;
}

/* No exception is pending any more. */
static void lower_ferr(struct soft_cpu *cpu)
{
    if (!(cpu->cr0 & CPU_CR0_NE) && cpu->vm && cpu->vm->irqchip)
        irqchip_ferr_set(cpu->vm->irqchip, false);
}

void x87_update_es(struct soft_cpu *cpu)
{
    uint16_t fsw = x87_get16(cpu, X87_FSW) & (uint16_t)~FSW_ES_B;
    bool pending = exception_pending(cpu);
    x87_put16(cpu, X87_FSW, pending ? fsw | FSW_ES_B : fsw);
    if (!pending)
        lower_ferr(cpu);
}

static void set_control(struct soft_cpu *cpu, uint16_t value)
{
    x87_put16(cpu, X87_FCW, (value & FCW_VALID) | FCW_FIXED);
    x87_update_es(cpu);
}

/* Registers stay where they are while TOP moves: the slots, which count from TOP, follow. */
static void set_top(struct soft_cpu *cpu, unsigned top)
{
    uint8_t st[8][16];
    unsigned by = (x87_top(cpu) - top) & 7;
    if (by == 0)
        return;
    memcpy(st, cpu->fpu.st, sizeof(st));
    for (unsigned i = 0; i < 8; i++)
        memcpy(cpu->fpu.st[(i + by) & 7], st[i], sizeof(st[i]));
    x87_put16(
        cpu, X87_FSW,
        (uint16_t)((x87_get16(cpu, X87_FSW) & ~(7u << FSW_TOP_SHIFT)) | top << FSW_TOP_SHIFT));
}

void mmx_rotate(struct soft_cpu *cpu)
{
    set_top(cpu, 0);
    cpu->fpu.x87[X87_TAGS] = 0xff;
}

void x87_init(struct soft_cpu *cpu)
{
    set_top(cpu, 0);
    memset(cpu->fpu.x87, 0, X87_MXCSR);
    x87_put16(cpu, X87_FCW, FCW_INIT);
}

/* Execute the current instruction again, after what is pending has been looked at. */
static void try_again(struct soft_cpu *cpu, const struct insn *insn)
{
    cpu->rip = (soft_next_rip(cpu, insn) - insn->len) & soft_ip_mask(cpu);
    cpu->stop_block = true;
    cpu->rip_set = true;
}

bool x87_ready(struct soft_cpu *cpu, const struct insn *insn)
{
    if (__builtin_expect(!exception_pending(cpu), 1))
        return true;
    if (cpu->cr0 & CPU_CR0_NE)
        soft_raise(cpu, EXC_MF);
    if (cpu->vm && cpu->vm->irqchip) {
        if (irqchip_ignne(cpu->vm->irqchip))
            return true;
        irqchip_ferr_set(cpu->vm->irqchip, true);
    }
    try_again(cpu, insn);
    return false;
}

/* --- code --- */

struct x87_plan {
    uint8_t bytes[2];
    bool flags;
};

static void emit(struct stub_asm *out, const void *ctx)
{
    const struct x87_plan *p = ctx;
    enum { host_mxcsr = offsetof(struct vec_frame, host_mxcsr) };
    enum { flags = offsetof(struct vec_frame, flags) };
    /* stmxcsr [rsi + host_mxcsr]; fxrstor64 [rdi] */
    stub_bytes(out, (const uint8_t[]){0x0f, 0xae, 0x5e, host_mxcsr, 0x48, 0x0f, 0xae, 0x0f}, 8);
    /* mov ax, [rsi + flags]; add al, 0x7f (OF from bit 0); sahf */
    if (p->flags)
        stub_bytes(out, (const uint8_t[]){0x66, 0x8b, 0x46, flags, 0x04, 0x7f, 0x9e}, 7);
    stub_bytes(out, p->bytes, 2);
    /* lahf; seto al; mov [rsi + flags], ax */
    if (p->flags)
        stub_bytes(out, (const uint8_t[]){0x9f, 0x0f, 0x90, 0xc0, 0x66, 0x89, 0x46, flags}, 8);
    /* fxsave64 [rdi]; fninit; ldmxcsr [rsi + host_mxcsr]; ret */
    stub_bytes(
        out,
        (const uint8_t[]){0x48, 0x0f, 0xae, 0x07, 0xdb, 0xe3, 0x0f, 0xae, 0x56, host_mxcsr, 0xc3},
        11);
}

/* --- the instruction that an exception handler is told of --- */

static uint64_t with_selector(const struct soft_cpu *cpu, uint64_t offset, unsigned seg)
{
    if (soft_code64(cpu))
        return offset;
    return (offset & 0xffffffff) | (uint64_t)cpu->seg[seg].selector << 32;
}

static void note_instruction(struct soft_cpu *cpu, const struct insn *insn)
{
    uint64_t rip = (soft_next_rip(cpu, insn) - insn->len) & soft_ip_mask(cpu);
    x87_put64(cpu, X87_FIP, with_selector(cpu, rip, SEG_CS));
    x87_put16(cpu, X87_FOP, (uint16_t)((insn->opcode_byte & 7) << 8 | insn->modrm));
    if (insn->is_mem)
        x87_put64(cpu, X87_FDP, with_selector(cpu, insn_offset(cpu, insn), insn->seg));
}

bool x87_is_control(const struct insn *insn)
{
    if (insn->opcode->attr & ATTR_X87_NOWAIT)
        return true;
    return insn->opcode_byte == 0xd9 && insn->is_mem && (insn->modrm >> 3 & 7) == 5;
}

/* --- instructions that run on the host --- */

static void gate_x87(struct soft_cpu *cpu)
{
    if (__builtin_expect((cpu->cr0 & (CR0_EM | CR0_TS)) != 0, 0))
        soft_raise(cpu, EXC_NM);
}

/* Returns the unmasked exceptions that it has met. What IGNNE# has let wait is not shown to the
 * host, which would raise it. */
static uint16_t run(struct soft_cpu *cpu, const struct insn *insn, struct vec_frame *frame)
{
    uint16_t waiting = exception_pending(cpu) ? x87_get16(cpu, X87_FSW) & FSW_EXCEPTIONS : 0;
    if (__builtin_expect(waiting, 0))
        x87_put16(cpu, X87_FSW, x87_get16(cpu, X87_FSW) & (uint16_t) ~(FSW_EXCEPTIONS | FSW_ES_B));
    uint8_t pointers[X87_MXCSR - X87_FOP], mxcsr_mask[4];
    memcpy(pointers, cpu->fpu.x87 + X87_FOP, sizeof(pointers));
    memcpy(mxcsr_mask, cpu->fpu.x87 + X87_MXCSR_MASK, sizeof(mxcsr_mask));
    fpu_set_mxcsr(cpu, fpu_mxcsr(cpu) & MXCSR_VALID);
    vec_code_of(insn)(&cpu->fpu, frame, 0, (uint64_t)(uintptr_t)frame->mem, 0, 0);
    memcpy(cpu->fpu.x87 + X87_FOP, pointers, sizeof(pointers));
    memcpy(cpu->fpu.x87 + X87_MXCSR_MASK, mxcsr_mask, sizeof(mxcsr_mask));
    if (!x87_is_control(insn))
        note_instruction(cpu, insn);
    uint16_t met = x87_get16(cpu, X87_FSW) & ~x87_get16(cpu, X87_FCW) & FSW_EXCEPTIONS;
    if (__builtin_expect(waiting, 0)) {
        x87_put16(cpu, X87_FSW, x87_get16(cpu, X87_FSW) | waiting);
        x87_update_es(cpu);
    }
    return met;
}

static void x87_register(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate_x87(cpu);
    if (x87_ready(cpu, insn))
        run(cpu, insn, &frame);
}

static void x87_load(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate_x87(cpu);
    if (!x87_ready(cpu, insn))
        return;
    vec_read(cpu, insn_linear(cpu, insn, insn->mem_bytes, false), frame.mem, insn->mem_bytes);
    run(cpu, insn, &frame);
}

/* Of the unmasked exceptions only that of precision lets the result be stored. */
static void x87_store(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate_x87(cpu);
    if (!x87_ready(cpu, insn))
        return;
    uint64_t la = insn_linear(cpu, insn, insn->mem_bytes, true);
    vec_check_write(cpu, la, insn->mem_bytes);
    if (!(run(cpu, insn, &frame) & ~0x20u))
        vec_write(cpu, la, frame.mem, insn->mem_bytes);
}

/* FCMOVcc reads the flags, FCOMI and the like write them. */
static void x87_flags(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate_x87(cpu);
    if (!x87_ready(cpu, insn))
        return;
    frame.flags = (uint16_t)((cpu->rflags & LAHF_MASK) << 8 | (cpu->rflags >> 11 & 1));
    run(cpu, insn, &frame);
    if (insn->opcode->flags_written)
        set_flags(cpu, frame.flags);
}

/* --- control --- */

static void fldcw(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_x87(cpu);
    if (x87_ready(cpu, insn))
        set_control(cpu, mmu_read16(cpu, insn_linear(cpu, insn, 2, false)));
}

static void fnstcw(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_x87(cpu);
    mmu_write16(cpu, insn_linear(cpu, insn, 2, true), x87_get16(cpu, X87_FCW));
}

static void fnstsw(struct soft_cpu *cpu, const struct insn *insn)
{
    gate_x87(cpu);
    mmu_write16(cpu, insn_linear(cpu, insn, 2, true), x87_get16(cpu, X87_FSW));
}

static void fnstsw_ax(struct soft_cpu *cpu, const struct insn *insn)
{
    (void)insn;
    gate_x87(cpu);
    soft_set_reg16(cpu, CPU_RAX, x87_get16(cpu, X87_FSW));
}

static void fnclex(struct soft_cpu *cpu, const struct insn *insn)
{
    (void)insn;
    gate_x87(cpu);
    /* Also the stack fault, ES and B. */
    x87_put16(cpu, X87_FSW, x87_get16(cpu, X87_FSW) & 0x7f00);
    lower_ferr(cpu);
}

static void fninit(struct soft_cpu *cpu, const struct insn *insn)
{
    (void)insn;
    gate_x87(cpu);
    x87_init(cpu);
    lower_ferr(cpu);
}

/* FNENI, FNDISI, FNSETPM: of coprocessors; nothing today. */
static void nothing(struct soft_cpu *cpu, const struct insn *insn)
{
    (void)insn;
    gate_x87(cpu);
}

static void fwait(struct soft_cpu *cpu, const struct insn *insn)
{
    if ((cpu->cr0 & (CPU_CR0_MP | CR0_TS)) == (CPU_CR0_MP | CR0_TS))
        soft_raise(cpu, EXC_NM);
    (void)x87_ready(cpu, insn);
}

/* --- the environment (SDM vol. 1, 8.1.10) --- */

/* Two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty. */
static uint16_t full_tags(const struct soft_cpu *cpu)
{
    unsigned top = x87_top(cpu), tags = 0;
    for (unsigned i = 0; i < 8; i++) {
        const uint8_t *st = cpu->fpu.st[(i - top) & 7];
        uint64_t mantissa;
        unsigned exponent = (st[8] | st[9] << 8) & 0x7fff, tag;
        memcpy(&mantissa, st, sizeof(mantissa));
        if (!(cpu->fpu.x87[X87_TAGS] >> i & 1))
            tag = 3;
        else if (exponent == 0 && mantissa == 0)
            tag = 1;
        else
            tag = exponent == 0 || exponent == 0x7fff || !(mantissa >> 63) ? 2 : 0;
        tags |= tag << (2 * i);
    }
    return (uint16_t)tags;
}

static void set_full_tags(struct soft_cpu *cpu, uint16_t tags)
{
    unsigned abridged = 0;
    for (unsigned i = 0; i < 8; i++)
        abridged |= ((tags >> (2 * i) & 3) != 3) << i;
    cpu->fpu.x87[X87_TAGS] = (uint8_t)abridged;
}

static bool real_format(const struct soft_cpu *cpu)
{
    return cpu->mode.real || cpu->mode.v86;
}

static void store16(uint8_t *to, uint64_t value)
{
    uint16_t narrow = (uint16_t)value;
    memcpy(to, &narrow, sizeof(narrow));
}

static void store32(uint8_t *to, uint64_t value)
{
    uint32_t narrow = (uint32_t)value;
    memcpy(to, &narrow, sizeof(narrow));
}

static uint16_t load16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

static uint32_t load32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

/* A pointer as a linear address of real mode. */
static uint32_t real_linear(uint64_t pointer)
{
    return (uint32_t)pointer + (uint32_t)((pointer >> 32 & 0xffff) << 4);
}

/* The pointers' four fields of width 2 or 4 behind the three words. */
static void put_pointers(const struct soft_cpu *cpu, uint8_t *to, unsigned width)
{
    uint64_t fip = x87_get64(cpu, X87_FIP), fdp = x87_get64(cpu, X87_FDP);
    uint64_t fop = x87_get16(cpu, X87_FOP) & 0x7ff, fields[4];
    if (real_format(cpu)) {
        uint32_t ip = real_linear(fip), dp = real_linear(fdp);
        uint64_t high = width == 2 ? 0xf000 : 0xffff000;
        fields[0] = ip & 0xffff;
        fields[1] = (ip >> 4 & high) | fop;
        fields[2] = dp & 0xffff;
        fields[3] = dp >> 4 & high;
    } else {
        fields[0] = fip;
        fields[1] = (fip >> 32 & 0xffff) | (width == 4 ? fop << 16 : 0);
        fields[2] = fdp;
        fields[3] = (fdp >> 32 & 0xffff) | 0xffff0000;
    }
    for (unsigned i = 0; i < 4; i++) {
        if (width == 2)
            store16(to + 2ul * i, fields[i]);
        else
            store32(to + 4ul * i, fields[i]);
    }
}

static void get_pointers(struct soft_cpu *cpu, const uint8_t *from, unsigned width)
{
    uint64_t f[4], fop = 0;
    for (unsigned i = 0; i < 4; i++)
        f[i] = width == 2 ? load16(from + 2ul * i) : load32(from + 4ul * i);
    if (real_format(cpu)) {
        uint64_t high = width == 2 ? 0xf000 : 0xffff000;
        x87_put64(cpu, X87_FIP, (f[0] & 0xffff) | (f[1] & high) << 4);
        x87_put64(cpu, X87_FDP, (f[2] & 0xffff) | (f[3] & high) << 4);
        fop = f[1];
    } else {
        x87_put64(cpu, X87_FIP, f[0] | (f[1] & 0xffff) << 32);
        x87_put64(cpu, X87_FDP, f[2] | (f[3] & 0xffff) << 32);
        fop = width == 4 ? f[1] >> 16 : 0;
    }
    x87_put16(cpu, X87_FOP, fop & 0x7ff);
}

/* Returns how many bytes. */
static unsigned put_environment(const struct soft_cpu *cpu, uint8_t *to, unsigned width)
{
    const uint16_t words[3] = {x87_get16(cpu, X87_FCW), x87_get16(cpu, X87_FSW), full_tags(cpu)};
    for (unsigned i = 0; i < 3; i++) {
        if (width == 2)
            store16(to + 2ul * i, words[i]);
        else
            store32(to + 4ul * i, words[i] | 0xffff0000);
    }
    put_pointers(cpu, to + (size_t)3 * width, width);
    return 7 * width;
}

static unsigned get_environment(struct soft_cpu *cpu, const uint8_t *from, unsigned width)
{
    set_top(cpu, load16(from + width) >> FSW_TOP_SHIFT & 7);
    x87_put16(cpu, X87_FSW, load16(from + width));
    set_full_tags(cpu, load16(from + 2ul * width));
    get_pointers(cpu, from + 3ul * width, width);
    set_control(cpu, load16(from));
    return 7 * width;
}

#define STATE_MAX (28 + 80)

static void fnstenv(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[STATE_MAX];
    gate_x87(cpu);
    unsigned len = put_environment(cpu, image, insn->op_bytes);
    mmu_write_bytes(cpu, insn_linear(cpu, insn, len, true), image, len);
    set_control(cpu, x87_get16(cpu, X87_FCW) | FSW_EXCEPTIONS);
    lower_ferr(cpu);
}

static void fldenv(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[STATE_MAX];
    unsigned len = 7u * insn->op_bytes;
    gate_x87(cpu);
    if (!x87_ready(cpu, insn))
        return;
    mmu_read_bytes(cpu, insn_linear(cpu, insn, len, false), image, len);
    get_environment(cpu, image, insn->op_bytes);
}

static void fnsave(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[STATE_MAX];
    gate_x87(cpu);
    unsigned len = put_environment(cpu, image, insn->op_bytes);
    for (unsigned i = 0; i < 8; i++, len += 10)
        memcpy(image + len, cpu->fpu.st[i], 10);
    mmu_write_bytes(cpu, insn_linear(cpu, insn, len, true), image, len);
    x87_init(cpu);
    lower_ferr(cpu);
}

static void frstor(struct soft_cpu *cpu, const struct insn *insn)
{
    uint8_t image[STATE_MAX];
    unsigned len = 7u * insn->op_bytes + 80;
    gate_x87(cpu);
    if (!x87_ready(cpu, insn))
        return;
    mmu_read_bytes(cpu, insn_linear(cpu, insn, len, false), image, len);
    unsigned at = get_environment(cpu, image, insn->op_bytes);
    for (unsigned i = 0; i < 8; i++, at += 10)
        memcpy(cpu->fpu.st[i], image + at, 10);
}

/* --- binding --- */

static soft_exec_fn *control_bind(const struct insn *insn)
{
    unsigned n = insn->modrm >> 3 & 7;
    if (!x87_is_control(insn))
        return NULL;
    if (insn->is_mem) {
        if (insn->opcode_byte == 0xdd)
            return fnstsw;
        return n == 5 ? fldcw : fnstcw;
    }
    return insn->modrm == 0xe2 ? fnclex : insn->modrm == 0xe3 ? fninit : nothing;
}

static soft_exec_fn *code_bind(struct insn *insn)
{
    struct stub_key key = {{0}};
    struct x87_plan plan = {
        .bytes = {insn->opcode_byte, insn->modrm},
        .flags = insn->op == OP_X87_FLAGS,
    };
    soft_exec_fn *fn = insn->op == OP_X87 ? control_bind(insn) : NULL;
    if (fn)
        return fn;
    if (insn->is_mem)
        plan.bytes[1] = (insn->modrm & 0x38) | CPU_RCX;
    memcpy(&key, plan.bytes, sizeof(plan.bytes));
    insn->stub = stub_find(&key, emit, &plan);
    if (!insn->stub)
        return vec_no_memory;
    if (plan.flags)
        return x87_flags;
    if (!insn->is_mem)
        return x87_register;
    return insn->opcode->attr & ATTR_MEM_WRITE ? x87_store : x87_load;
}

soft_exec_fn *x87_bind(struct insn *insn)
{
    switch (insn->op) {
    case OP_X87:
    case OP_X87_FLAGS:
        return code_bind(insn);
    case OP_X87_FNSTSW_AX:
        return fnstsw_ax;
    case OP_X87_FLDENV:
        return fldenv;
    case OP_X87_FNSTENV:
        return fnstenv;
    case OP_X87_FRSTOR:
        return frstor;
    case OP_X87_FNSAVE:
        return fnsave;
    case OP_FWAIT:
        return fwait;
    default:
        return NULL;
    }
}

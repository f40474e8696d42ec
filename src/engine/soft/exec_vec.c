/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MMX, SSE and AVX: each instruction is encoded anew with its operands in fixed registers and run
 * by the host's own CPU, between loads from and stores to struct soft_fpu (stub.h). Plain moves,
 * masked accesses and gathers are done in C, in files of their own.
 *
 * In generated code: RDI is the state, RSI the frame, RDX, RCX, R8, R9 the operands `reg`, `rm`,
 * `vvvv`, imm8[7:4] as offsets; they are loaded to XMM1 to XMM4 (MM1, MM2; RAX). A memory operand
 * is at RCX.
 *
 * Exceptions of arithmetic stay masked while it runs; the flags say afterwards what the guest's
 * MXCSR makes of them, and only then is the destination written.
 */
#include <stddef.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/stub.h"

enum operand_kind {
    OPERAND_NONE,
    OPERAND_XMM,
    OPERAND_MMX,
    OPERAND_GPR,
    OPERAND_MEM,
};

/* An instruction as it is run. */
struct plan {
    uint8_t bytes[12]; /* encoded */
    uint8_t len;
    uint8_t reg, rm, v, imm_reg; /* enum operand_kind */
    uint8_t dst;                 /* enum place */
    bool load_dst;               /* the destination is an operand too */
    bool vex, wide;              /* wide: 256 bits */
    bool fp, flags, string, index_result, xmm0;
};

/* Fixed registers: XMM1-XMM4 and the index register of the offset; also enum of destinations. */
enum place {
    PLACE_NONE,
    PLACE_REG,
    PLACE_RM,
    PLACE_V,
    PLACE_IMM,
};

/* --- what the bytes say --- */

struct vec_opcode vec_opcode_of(const struct insn *insn)
{
    struct vec_opcode code = {.map = 1};
    bool opsize = false, is_prefix = true;
    unsigned i = 0, rep = 0;
    for (; i < insn->len && is_prefix; i++) {
        uint8_t byte = insn->bytes[i];
        if (byte == 0x66)
            opsize = true;
        else if (byte == 0xf2 || byte == 0xf3)
            rep = byte;
        else
            is_prefix = byte == 0x67 || byte == 0xf0 || (byte & 0xfe) == 0x64 ||
                        (byte & 0xe7) == 0x26 || (byte & 0xf0) == 0x40;
    }
    /* i is behind the first byte that is no prefix: C4, C5, 0F. */
    if (insn->prefixes & PREFIX_VEX) {
        bool three = insn->bytes[i - 1] == 0xc4;
        uint8_t last = insn->bytes[three ? i + 1 : i];
        code.pp = last & 3;
        code.map = three ? insn->bytes[i] & 31 : 1;
        code.w = three && last & 0x80;
        return code;
    }
    code.pp = rep == 0xf3 ? 2 : rep == 0xf2 ? 3 : opsize ? 1 : 0;
    code.w = insn->prefixes & PREFIX_REX_W;
    if (insn->bytes[i - 1] == 0x0f)
        code.map = insn->bytes[i] == 0x38 ? 2 : insn->bytes[i] == 0x3a ? 3 : 1;
    return code;
}

static void set_operands(struct plan *p, const struct insn *insn)
{
    uint32_t attr = insn->opcode->attr;
    enum insn_form form = insn->opcode->form;
    bool extension = form == FORM_RM || form == FORM_V_RM;
    bool has_v = form == FORM_REG_V_RM || form == FORM_V_RM || form == FORM_REG_RM_V ||
                 form == FORM_RM_V_REG;
    bool to_rm = form == FORM_RM || form == FORM_RM_REG || form == FORM_RM_V_REG;
    if (!extension)
        p->reg = attr & ATTR_GPR_REG   ? OPERAND_GPR
                 : attr & ATTR_MMX_REG ? OPERAND_MMX
                                       : OPERAND_XMM;
    p->rm = insn->is_mem         ? OPERAND_MEM
            : attr & ATTR_GPR_RM ? OPERAND_GPR
            : attr & ATTR_MMX_RM ? OPERAND_MMX
                                 : OPERAND_XMM;
    p->v = has_v ? OPERAND_XMM : OPERAND_NONE;
    p->imm_reg = attr & ATTR_IMM_REG ? OPERAND_XMM : OPERAND_NONE;
    p->dst = attr & ATTR_NO_DST  ? PLACE_NONE
             : to_rm             ? PLACE_RM
             : form == FORM_V_RM ? PLACE_V
                                 : PLACE_REG;
    p->load_dst = !p->vex || insn->opcode->feature == FEAT_FMA;
}

/* --- encoding --- */

static void put(struct plan *p, unsigned byte)
{
    p->bytes[p->len++] = (uint8_t)byte;
}

static void put_prefixes(struct plan *p, const struct insn *insn, struct vec_opcode code)
{
    static const uint8_t pp_bytes[4] = {0, 0x66, 0xf3, 0xf2};
    bool general = insn->opcode->attr & (ATTR_GPR_REG | ATTR_GPR_RM) || p->string;
    /* Outside of 64-bit code W does not widen general registers. */
    bool w = general ? (insn->prefixes & PREFIX_REX_W) != 0 : p->vex && code.w;
    if (p->vex) {
        unsigned v = p->v ? PLACE_V : 0;
        put(p, 0xc4);
        put(p, 0xe0u | code.map);
        put(p, (w ? 0x80u : 0) | (~v & 15) << 3 | (p->wide ? 4u : 0) | code.pp);
        return;
    }
    if (code.pp)
        put(p, pp_bytes[code.pp]);
    if (w)
        put(p, 0x48);
    put(p, 0x0f);
    if (code.map > 1)
        put(p, code.map == 2 ? 0x38 : 0x3a);
}

static bool is_bit_field(const struct insn *insn)
{
    return insn->opcode->feature == FEAT_SSE4A && insn->opcode_byte == 0x78;
}

/* Do an opcode's rows have an immediate? The decoder has skipped it: what is left of the length. */
static bool has_immediate(const struct insn *insn, struct vec_opcode code)
{
    static const uint8_t map1[] = {0x70, 0x71, 0x72, 0x73, 0xc2, 0xc4, 0xc5, 0xc6};
    return code.map == 3 || (code.map == 1 && memchr(map1, insn->opcode_byte, sizeof(map1)));
}

static void encode(struct plan *p, const struct insn *insn)
{
    struct vec_opcode code = vec_opcode_of(insn);
    unsigned reg = p->reg == OPERAND_NONE  ? insn->modrm >> 3 & 7u
                   : p->reg == OPERAND_GPR ? (unsigned)CPU_RAX
                                           : (unsigned)PLACE_REG;
    unsigned rm = p->rm == OPERAND_MEM   ? (unsigned)CPU_RCX
                  : p->rm == OPERAND_GPR ? (unsigned)CPU_RAX
                                         : (unsigned)PLACE_RM;
    put_prefixes(p, insn, code);
    put(p, insn->opcode_byte);
    put(p, (p->rm == OPERAND_MEM ? 0u : 0xc0u) | reg << 3 | rm);
    if (is_bit_field(insn)) {
        put(p, insn->imm & 0x3f);
        put(p, insn->imm2 & 0x3fu);
    } else if (p->imm_reg) {
        put(p, PLACE_IMM << 4 | (insn->imm & 15));
    } else if (has_immediate(insn, code)) {
        put(p, insn->imm & 0xff);
    }
}

static void make_plan(struct plan *p, const struct insn *insn)
{
    *p = (struct plan){
        .vex = insn->prefixes & PREFIX_VEX,
        .wide = insn->op_bytes == 32,
        .fp = insn->opcode->attr & ATTR_FP,
        .flags = insn->op == OP_VEC_FLAGS || insn->op == OP_VEC_STR,
        .string = insn->op == OP_VEC_STR,
        .index_result = insn->op == OP_VEC_STR && insn->opcode_byte & 1,
        .xmm0 = insn->opcode->attr & ATTR_XMM0,
    };
    set_operands(p, insn);
    encode(p, insn);
}

/* --- code --- */

#define XMM_AT    offsetof(struct soft_fpu, xmm)
#define YMM_HI_AT offsetof(struct soft_fpu, ymm_hi)
#define MM_AT     offsetof(struct soft_fpu, st)

/* Registers that hold the operands' offsets, by enum place. */
static const uint8_t offset_register[] = {
    [PLACE_REG] = CPU_RDX, [PLACE_RM] = CPU_RCX, [PLACE_V] = CPU_R8, [PLACE_IMM] = CPU_R9};

/* ModRM, SIB and displacement of [rdi + offset + at]. */
static void emit_address(struct stub_asm *out, unsigned reg, enum place place, size_t at)
{
    stub_byte(out, 0x84 | reg << 3);
    stub_byte(out, (offset_register[place] & 7u) << 3 | CPU_RDI);
    stub_word32(out, (uint32_t)at);
}

static void emit_vex(struct stub_asm *out, enum place place, unsigned map, unsigned w_v_l_pp)
{
    stub_byte(out, 0xc4);
    stub_byte(out, (offset_register[place] >= 8 ? 0xa0u : 0xe0u) | map);
    stub_byte(out, w_v_l_pp);
}

/* A legacy instruction: prefix (or 0), REX.X where needed, 0F, opcode. */
static void emit_legacy(struct stub_asm *out, enum place place, unsigned prefix, unsigned opcode)
{
    if (prefix)
        stub_byte(out, prefix);
    if (offset_register[place] >= 8)
        stub_byte(out, 0x42);
    stub_byte(out, 0x0f);
    stub_byte(out, opcode);
}

static void emit_load(struct stub_asm *out, const struct plan *p, enum place place, unsigned kind)
{
    if (kind == OPERAND_MMX) {
        emit_legacy(out, place, 0, 0x6f); /* movq mm, m64 */
        emit_address(out, place, place, MM_AT);
    } else if (kind == OPERAND_XMM && !p->vex) {
        emit_legacy(out, place, 0, 0x10); /* movups xmm, m128 */
        emit_address(out, place, place, XMM_AT);
    } else if (kind == OPERAND_XMM) {
        emit_vex(out, place, 1, 0x78); /* vmovups xmm, m128 */
        stub_byte(out, 0x10);
        emit_address(out, place, place, XMM_AT);
        if (p->wide) {
            emit_vex(out, place, 3, 0x05 | (~(unsigned)place & 15) << 3);
            stub_byte(out, 0x18); /* vinsertf128 ymm, ymm, m128, 1 */
            emit_address(out, place, place, YMM_HI_AT);
            stub_byte(out, 1);
        }
    }
}

static void emit_store(struct stub_asm *out, const struct plan *p, enum place place, unsigned kind)
{
    if (kind == OPERAND_MMX) {
        emit_legacy(out, place, 0, 0x7f); /* movq m64, mm */
        emit_address(out, place, place, MM_AT);
        /* mov word [...], 0xffff */
        stub_bytes(out, (const uint8_t[]){0x66, 0xc7}, 2);
        emit_address(out, 0, place, MM_AT + 8);
        stub_bytes(out, (const uint8_t[]){0xff, 0xff}, 2);
    } else if (kind == OPERAND_XMM && !p->vex) {
        emit_legacy(out, place, 0, 0x11); /* movups m128, xmm */
        emit_address(out, place, place, XMM_AT);
    } else if (kind == OPERAND_XMM) {
        emit_vex(out, place, 1, 0x78); /* vmovups m128, xmm */
        stub_byte(out, 0x11);
        emit_address(out, place, place, XMM_AT);
        emit_vex(out, place, 3, 0x7d);
        stub_byte(out, 0x19); /* vextractf128 m128, ymm, 1 */
        emit_address(out, place, place, YMM_HI_AT);
        stub_byte(out, 1);
    } else if (kind == OPERAND_GPR) {
        stub_bytes(out, (const uint8_t[]){0x48, 0x89, 0x46, offsetof(struct vec_frame, gpr)}, 4);
    }
}

/* XMM0, implied: a legacy source; the destination of PCMPxSTRM, which for VEX has zeroes above. */
static void emit_xmm0(struct stub_asm *out, bool store, bool zero_above)
{
    stub_bytes(out, (const uint8_t[]){0x0f, store ? 0x11 : 0x10, 0x87}, 3);
    stub_word32(out, XMM_AT);
    if (zero_above) {
        stub_bytes(out, (const uint8_t[]){0x0f, 0x57, 0xc0, 0x0f, 0x11, 0x87}, 6);
        stub_word32(out, YMM_HI_AT);
    }
}

/* ldmxcsr (2), stmxcsr (3) [rsi + at] */
static void emit_mxcsr(struct stub_asm *out, unsigned extension, size_t at)
{
    stub_bytes(out, (const uint8_t[]){0x0f, 0xae, (uint8_t)(0x46 | extension << 3), (uint8_t)at},
               4);
}

/* mov rax, [rsi + gpr] */
static void emit_load_gpr(struct stub_asm *out)
{
    stub_bytes(out, (const uint8_t[]){0x48, 0x8b, 0x46, offsetof(struct vec_frame, gpr)}, 4);
}

/* lahf; seto al; mov [rsi + flags], ax */
static void emit_flags(struct stub_asm *out)
{
    stub_bytes(out,
               (const uint8_t[]){0x9f, 0x0f, 0x90, 0xc0, 0x66, 0x89, 0x46,
                                 offsetof(struct vec_frame, flags)},
               8);
}

static void emit_operands(struct stub_asm *out, const struct plan *p)
{
    if (p->xmm0)
        emit_xmm0(out, false, false);
    if (p->dst != PLACE_REG || p->load_dst)
        emit_load(out, p, PLACE_REG, p->reg);
    if (p->dst != PLACE_RM || p->load_dst)
        emit_load(out, p, PLACE_RM, p->rm);
    if (p->dst != PLACE_V || p->load_dst)
        emit_load(out, p, PLACE_V, p->v);
    emit_load(out, p, PLACE_IMM, p->imm_reg);
    if ((p->rm == OPERAND_GPR && p->dst != PLACE_RM) || p->string)
        emit_load_gpr(out);
    if (p->string) /* mov rdx, [rsi + rdx] */
        stub_bytes(out, (const uint8_t[]){0x48, 0x8b, 0x56, offsetof(struct vec_frame, rdx)}, 4);
}

static void emit_results(struct stub_asm *out, const struct plan *p)
{
    if (p->dst == PLACE_REG)
        emit_store(out, p, PLACE_REG, p->reg);
    else if (p->dst == PLACE_RM)
        emit_store(out, p, PLACE_RM, p->rm);
    else if (p->dst == PLACE_V)
        emit_store(out, p, PLACE_V, p->v);
    else if (p->string && p->index_result) /* mov [rsi + gpr], rcx */
        stub_bytes(out, (const uint8_t[]){0x48, 0x89, 0x4e, offsetof(struct vec_frame, gpr)}, 4);
    else if (p->string)
        emit_xmm0(out, true, p->vex);
}

static void emit_end(struct stub_asm *out, const struct plan *p)
{
    if (p->reg == OPERAND_MMX || p->rm == OPERAND_MMX)
        stub_bytes(out, (const uint8_t[]){0x0f, 0x77}, 2); /* emms */
    if (p->vex)
        stub_bytes(out, (const uint8_t[]){0xc5, 0xf8, 0x77}, 3); /* vzeroupper */
    stub_byte(out, 0xc3);
}

static void emit(struct stub_asm *out, const void *ctx)
{
    const struct plan *p = ctx;
    unsigned jump = 0;
    emit_operands(out, p);
    if (p->fp) {
        emit_mxcsr(out, 3, offsetof(struct vec_frame, host_mxcsr));
        emit_mxcsr(out, 2, offsetof(struct vec_frame, mxcsr));
    }
    stub_bytes(out, p->bytes, p->len);
    if (p->flags)
        emit_flags(out);
    if (p->fp) {
        emit_mxcsr(out, 3, offsetof(struct vec_frame, mxcsr));
        emit_mxcsr(out, 2, offsetof(struct vec_frame, host_mxcsr));
        /* mov r10d, [rsi + mxcsr]; test [rsi + unmasked], r10d; jnz to the end */
        stub_bytes(out,
                   (const uint8_t[]){0x44, 0x8b, 0x56, offsetof(struct vec_frame, mxcsr), 0x44,
                                     0x85, 0x56, offsetof(struct vec_frame, unmasked), 0x75, 0},
                   10);
        jump = out->len;
    }
    emit_results(out, p);
    if (p->fp)
        out->code[jump - 1] = (uint8_t)(out->len - jump);
    emit_end(out, p);
}

/* --- handlers --- */

static void gate(struct soft_cpu *cpu, uint32_t attr)
{
    if (attr & ATTR_AVX)
        gate_avx(cpu);
    else if (attr & ATTR_SSE)
        gate_sse(cpu);
    else if (cpu->cr0 & (CR0_EM | CR0_TS))
        soft_raise(cpu, cpu->cr0 & CR0_EM ? EXC_UD : EXC_NM);
}

static inline void run(struct soft_cpu *cpu, const struct insn *insn, struct vec_frame *frame,
                       uint64_t rm)
{
    vec_code_of(insn)(&cpu->fpu, frame, insn->reg * 16ull, rm, insn->vvvv * 16ull,
                      insn_imm_reg(insn) * 16ull);
}

static void prepare_mxcsr(const struct soft_cpu *cpu, struct vec_frame *frame)
{
    uint32_t mxcsr = fpu_mxcsr(cpu) & MXCSR_VALID;
    frame->mxcsr = (mxcsr & ~MXCSR_FLAGS) | MXCSR_MASKS;
    frame->unmasked = ~mxcsr >> MXCSR_MASK_SHIFT & MXCSR_FLAGS;
    /* An unmasked underflow is any tiny result, a masked one an inexact tiny result; but with
     * flush to zero every tiny one is flagged (SDM vol. 1, 4.9.1.5). Without a tiny result that
     * mode changes nothing, and with one the exception is raised. What is not known then is
     * whether the result is inexact beside it. VCVTPS2PH does not flush: exact_tiny_half(). */
    if (frame->unmasked & MXCSR_UE)
        frame->mxcsr |= MXCSR_FTZ;
}

static bool is_to_half(const struct insn *insn)
{
    return insn->opcode->feature == FEAT_F16C && insn->opcode_byte == 0x1d;
}

/*
 * Has the source of VCVTPS2PH an element whose result is tiny and exact: 2^-24 to below 2^-14, and
 * a multiple of 2^-24? Where underflow is not masked that is one (SDM vol. 1, 4.9.1.5). The other
 * tiny ones are inexact, which the host flags.
 */
static bool exact_tiny_half(const struct soft_cpu *cpu, const struct insn *insn)
{
    for (unsigned at = 0; at < insn->op_bytes; at += 4) {
        const uint8_t *from =
            at < 16 ? cpu->fpu.xmm[insn->reg] + at : cpu->fpu.ymm_hi[insn->reg] + (at - 16);
        uint32_t bits;
        memcpy(&bits, from, 4);
        unsigned exponent = bits >> 23 & 255; /* 127: of 1 to below 2 */
        if (exponent < 127 - 24 || exponent >= 127 - 14)
            continue;
        /* Of 24 bits with the implied one, those below 2^-24. */
        uint32_t below = (1u << (126 - exponent)) - 1;
        if (!((bits | 1u << 23) & below & 0xffffff))
            return true;
    }
    return false;
}

/* Exceptions found before the operation (invalid, denormal, divide) keep those of the result
 * (overflow, underflow, precision) from being looked for (SDM vol. 1, 11.5.2). */
static void finish_mxcsr(struct soft_cpu *cpu, const struct vec_frame *frame)
{
    uint32_t flags = frame->mxcsr & MXCSR_FLAGS;
    uint32_t raised = flags & frame->unmasked;
    if (raised & 7)
        flags &= 7;
    fpu_set_mxcsr(cpu, fpu_mxcsr(cpu) | flags);
    if (raised)
        soft_raise(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
}

/* The linear address of the memory operand, checked for alignment. */
static inline uint64_t operand(struct soft_cpu *cpu, const struct insn *insn, bool write)
{
    if (insn->opcode->attr & ATTR_ALIGNED)
        insn_check_alignment(cpu, insn, insn->mem_bytes);
    return insn_linear(cpu, insn, insn->mem_bytes, write);
}

/* Where the operand can be read: in guest memory, or copied to the frame. */
static inline const uint8_t *fetch_operand(struct soft_cpu *cpu, const struct insn *insn,
                                           struct vec_frame *frame)
{
    uint64_t la = operand(cpu, insn, false);
    const uint8_t *host = mmu_fast(cpu, la, insn->mem_bytes, false);
    if (host)
        return host;
    mmu_read_bytes(cpu, la, frame->mem, insn->mem_bytes);
    return frame->mem;
}

static inline uint64_t address_bits(const uint8_t *host)
{
    return (uint64_t)(uintptr_t)host;
}

/* XMM and YMM registers only. */
static void vec_registers(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate(cpu, insn->opcode->attr);
    run(cpu, insn, &frame, insn->rm * 16ull);
}

static void vec_load(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    gate(cpu, insn->opcode->attr);
    run(cpu, insn, &frame, address_bits(fetch_operand(cpu, insn, &frame)));
}

/* With MXCSR; no MMX, general register or store. */
static void vec_float(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    uint64_t rm = insn->rm * 16ull;
    gate(cpu, insn->opcode->attr);
    if (insn->is_mem)
        rm = address_bits(fetch_operand(cpu, insn, &frame));
    prepare_mxcsr(cpu, &frame);
    run(cpu, insn, &frame, rm);
    finish_mxcsr(cpu, &frame);
}

/* CVTPI2PS and CVTPI2PD from memory touch no MMX register, and change no x87 state. */
static bool uses_mmx(const struct insn *insn)
{
    uint32_t attr = insn->opcode->attr;
    return attr & ATTR_MMX && ((attr & ATTR_MMX_REG) || !insn->is_mem);
}

/* Any combination. */
static void vec_any(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    uint32_t attr = insn->opcode->attr;
    uint64_t rm = insn->rm * 16ull, la = 0;
    bool store = insn->is_mem && attr & ATTR_MEM_WRITE, mmx = uses_mmx(insn);
    gate(cpu, attr);
    if (mmx && !x87_ready(cpu, insn))
        return;
    if (store) {
        la = operand(cpu, insn, true);
        vec_check_write(cpu, la, insn->mem_bytes);
        rm = address_bits(frame.mem);
    } else if (insn->is_mem) {
        rm = address_bits(fetch_operand(cpu, insn, &frame));
    }
    /* Before the operation, which may raise #XM: as on AMD's processors. */
    if (mmx)
        mmx_rotate(cpu);
    if (!insn->is_mem && attr & ATTR_GPR_RM)
        frame.gpr = cpu->gpr[insn->rm];
    if (attr & ATTR_FP)
        prepare_mxcsr(cpu, &frame);
    if (attr & ATTR_FP && frame.unmasked & MXCSR_UE && is_to_half(insn) &&
        exact_tiny_half(cpu, insn))
        frame.mxcsr |= MXCSR_UE; /* flags stay set */
    run(cpu, insn, &frame, rm);
    if (attr & ATTR_FP)
        finish_mxcsr(cpu, &frame);
    if (insn->op == OP_VEC_FLAGS)
        set_flags(cpu, frame.flags);
    if (attr & ATTR_GPR_REG)
        cpu->gpr[insn->reg] = frame.gpr;
    else if (!insn->is_mem && attr & ATTR_GPR_RM && attr & ATTR_RM_IS_DST)
        cpu->gpr[insn->rm] = frame.gpr;
    if (store)
        vec_write(cpu, la, frame.mem, insn->mem_bytes);
}

static void vec_string(struct soft_cpu *cpu, const struct insn *insn)
{
    struct vec_frame frame;
    uint64_t rm = insn->rm * 16ull;
    gate(cpu, insn->opcode->attr);
    if (insn->is_mem)
        rm = address_bits(fetch_operand(cpu, insn, &frame));
    frame.gpr = cpu->gpr[CPU_RAX];
    frame.rdx = cpu->gpr[CPU_RDX];
    run(cpu, insn, &frame, rm);
    set_flags(cpu, frame.flags);
    if (insn->opcode_byte & 1)
        cpu->gpr[CPU_RCX] = frame.gpr;
}

void vec_no_memory(struct soft_cpu *cpu, const struct insn *insn)
{
    soft_exit(cpu, ENGINE_EXIT_FAILURE,
              "there is no memory for generated code, which %s needs; is it allowed to map memory "
              "that can be executed?",
              insn->opcode->name);
}

/* --- VZEROUPPER, EMMS, MXCSR --- */

static void vec_zero(struct soft_cpu *cpu, const struct insn *insn)
{
    size_t bytes = 16 * vec_register_count(cpu);
    gate_avx(cpu);
    memset(cpu->fpu.ymm_hi, 0, bytes);
    if (insn->op_bytes == 32)
        memset(cpu->fpu.xmm, 0, bytes);
}

static void emms(struct soft_cpu *cpu, const struct insn *insn)
{
    gate(cpu, ATTR_MMX);
    if (!x87_ready(cpu, insn))
        return;
    mmx_rotate(cpu);
    cpu->fpu.x87[X87_TAGS] = 0;
}

static void ldmxcsr(struct soft_cpu *cpu, const struct insn *insn)
{
    gate(cpu, insn->opcode->attr);
    uint32_t value = mmu_read32(cpu, insn_linear(cpu, insn, 4, false));
    if (value & ~MXCSR_VALID)
        soft_raise_error(cpu, EXC_GP, 0);
    fpu_set_mxcsr(cpu, value);
}

static void stmxcsr(struct soft_cpu *cpu, const struct insn *insn)
{
    gate(cpu, insn->opcode->attr);
    mmu_write32(cpu, insn_linear(cpu, insn, 4, true), fpu_mxcsr(cpu));
}

/* --- binding --- */

static soft_exec_fn *bind_code(const struct soft_cpu *cpu, struct insn *insn)
{
    struct plan plan;
    struct stub_key key = {{0}};
    uint32_t attr = insn->opcode->attr;
    soft_exec_fn *fn = vec_move_bind(insn);
    if (fn)
        return fn;
    /* There are eight registers, whatever imm8[7] says. */
    if (attr & ATTR_IMM_REG && !soft_code64(cpu))
        insn->imm &= 0x7f;
    make_plan(&plan, insn);
    memcpy(&key, plan.bytes, plan.len);
    insn->stub = stub_find(&key, emit, &plan);
    if (!insn->stub)
        return vec_no_memory;
    if (insn->op == OP_VEC_STR)
        return vec_string;
    if (insn->op == OP_VEC_FLAGS || attr & (ATTR_MMX | ATTR_GPR_REG | ATTR_GPR_RM) ||
        (insn->is_mem && attr & ATTR_MEM_WRITE))
        return vec_any;
    if (attr & ATTR_FP)
        return is_to_half(insn) ? vec_any : vec_float;
    return insn->is_mem ? vec_load : vec_registers;
}

soft_exec_fn *exec_vec_bind(struct soft_cpu *cpu, struct insn *insn)
{
    switch (insn->op) {
    case OP_VEC:
    case OP_VEC_FLAGS:
    case OP_VEC_STR:
        return bind_code(cpu, insn);
    case OP_VEC_GATHER:
    case OP_VEC_MASKLOAD:
    case OP_VEC_MASKSTORE:
    case OP_VEC_MASKMOVDQU:
        return vec_mask_bind(insn);
    case OP_VEC_ZERO:
        return vec_zero;
    case OP_EMMS:
        return emms;
    case OP_LDMXCSR:
        return ldmxcsr;
    case OP_STMXCSR:
        return stmxcsr;
    default:
        break;
    }
    soft_exec_fn *fn = x87_bind(insn);
    return fn ? fn : xsave_bind(insn);
}
